// The view in the Retrieval Map node. Its data are files in ComfyUI's temporary folder, which the
// node's own output names.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { Sources } from "./map/exclude.js";
import { MapView } from "./map/view.js";

const NODE = "ARRAG_RetrievalMap";
const SIZE = [640, 640];
const HEIGHT = 420;

function temporary(filename) {
  return `/view?${new URLSearchParams({ filename, type: "temp", subfolder: "" })}`;
}

async function readPicture(files) {
  const answer = await api.fetchApi(temporary(files.data));
  if (!answer.ok) throw new Error(`HTTP status ${answer.status}`);
  return {
    ...(await answer.json()),
    picture: api.apiURL(temporary(files.picture)),
    atlas: api.apiURL(temporary(files.thumbnails)),
  };
}

function addStyle() {
  const href = new URL("./map/style.css", import.meta.url).href;
  if (document.querySelector(`link[href="${href}"]`)) return;
  const link = document.createElement("link");
  Object.assign(link, { rel: "stylesheet", href });
  document.head.append(link);
}

function addView(node) {
  addStyle();
  const view = new MapView(new Sources(node, app));
  node.addDOMWidget("view", "arrag_map", view.element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => HEIGHT,
  }).serialize = false;
  node.setSize([Math.max(node.size[0], SIZE[0]), Math.max(node.size[1], SIZE[1])]);
  const before = node.onExecuted;
  node.onExecuted = function (output) {
    before?.apply(this, arguments);
    showOutput(view, output);
  };
  return view;
}

async function showOutput(view, output) {
  if (!output?.arrag_map) return;
  view.run = (view.run ?? 0) + 1;
  const { run } = view;
  try {
    const pictures = await Promise.all(output.arrag_map.map(readPicture));
    if (run === view.run) view.show(pictures);
  } catch (error) {
    if (run === view.run) view.say(`The data of the map cannot be read (${error.message}).`);
  }
}

const views = new WeakMap();

app.registerExtension({
  name: "ARRAG.RetrievalMap",
  nodeCreated(node) {
    if (node.comfyClass === NODE) views.set(node, addView(node));
  },
  // Undo makes the nodes anew; what they showed is still known.
  loadedGraphNode(node) {
    if (views.has(node)) showOutput(views.get(node), app.nodeOutputs?.[node.id]);
  },
});
