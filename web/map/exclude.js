// Where a source of a layer can be excluded: the Retrieval Options upstream of the map.

const OPTIONS = "ARRAG_RetrievalOptions";
const BYPASSED = 4;

function above(node, name) {
  const slot = node.inputs?.findIndex((input) => input.name === name) ?? -1;
  let found = slot < 0 ? null : node.getInputNode(slot);
  while (found?.type === "Reroute") found = found.getInputNode(0);
  return found;
}

function lines(text) {
  return String(text ?? "").split("\n").filter((line) => line.trim());
}

export class Sources {
  constructor(map, app) {
    this.map = map;
    this.app = app;
  }

  // Retrieval Options of all layers, in the order in which they were chained. ComfyUI passes over
  // bypassed nodes, which make no layer.
  layers() {
    const sampler = above(this.map, "trace");
    const found = [];
    const seen = new Set();
    let node = sampler && above(sampler, "retrieval");
    while (node?.comfyClass === OPTIONS && !seen.has(node)) {
      seen.add(node);
      if (node.mode !== BYPASSED) found.unshift(node);
      node = above(node, "retrieval");
    }
    return found;
  }

  // The widget of a layer's patterns; a sentence where there is none that can be written to.
  place(layer) {
    const node = this.layers()[layer];
    if (!node) return { reason: `No Retrieval Options of layer ${layer + 1} is connected upstream.` };
    const input = node.inputs?.find((one) => one.name === "exclude");
    if (input?.link != null) {
      return { reason: `The input exclude of ${node.title} is connected; write the line there.` };
    }
    const widget = node.widgets?.find((one) => one.name === "exclude");
    if (!widget) return { reason: `${node.title} has no exclude.` };
    return { node, widget };
  }

  excludes(layer, pattern) {
    const { widget } = this.place(layer);
    return Boolean(widget) && lines(widget.value).some((line) => line.trim() === pattern.trim());
  }

  // Add the line, or take it away; says what it did.
  toggle(layer, pattern) {
    const { node, widget, reason } = this.place(layer);
    if (reason) return `${reason} The line is ${pattern}`;
    const had = this.excludes(layer, pattern);
    const kept = lines(widget.value).filter((line) => line.trim() !== pattern.trim());
    const text = (had ? kept : [...kept, pattern]).join("\n");
    widget.value = text;
    widget.callback?.(text, this.app.canvas, node);
    this.app.graph.setDirtyCanvas(true, true);
    this.app.extensionManager?.workflow?.activeWorkflow?.changeTracker?.checkState?.();
    const where = `exclude of ${node.title} (#${node.id})`;
    return had
      ? `Removed ${pattern} from ${where}.`
      : `Added ${pattern} to ${where}. Run again to draw without it.`;
  }
}
