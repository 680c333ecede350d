// A picture whose patches say where they come from. Names and captions are the words of strangers:
// they become text, never markup.

const KEPT = -2;
const MODEL = -1;
const STEPS = 160;
const TICK = 50;
const RAMP = [
  [11, 9, 36],
  [87, 16, 110],
  [188, 55, 84],
  [249, 142, 9],
  [252, 255, 164],
];
const DRAWERS = ["#64748b", "#f97316", "#22c55e", "#38bdf8", "#e879f9", "#facc15"];
const HELP =
  "Point at a patch, or use the arrow keys. A click or Enter pins it; Escape releases it.";
const WAITING = "Run the workflow: the picture appears here, patch by patch.";
const OVERLAYS = { none: "Picture", influence: "Influence", drawer: "Drawn by" };
const MOVES = {
  ArrowLeft: [0, -1],
  ArrowRight: [0, 1],
  ArrowUp: [-1, 0],
  ArrowDown: [1, 0],
};
let views = 0;

function make(tag, properties = {}, ...children) {
  const { aria = {}, ...rest } = properties;
  const element = Object.assign(document.createElement(tag), rest);
  for (const [name, value] of Object.entries(aria)) element.setAttribute(`aria-${name}`, value);
  element.append(...children);
  return element;
}

function percent(share) {
  return `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`;
}

function colour(share) {
  const at = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1);
  const low = Math.min(Math.floor(at), RAMP.length - 2);
  const mixed = RAMP[low].map((value, i) => value + (at - low) * (RAMP[low + 1][i] - value));
  return `rgb(${mixed.map(Math.round).join(" ")})`;
}

function drawerColour(component) {
  return component === KEPT ? "#fff" : DRAWERS[(component - MODEL) % DRAWERS.length];
}

export class MapView {
  // `sources` excludes them; see exclude.js.
  constructor(sources) {
    this.sources = sources;
    this.pictures = [];
    this.number = 0;
    this.position = 0;
    this.pinned = false;
    this.timer = null;
    this.build();
    this.update();
  }

  get data() {
    return this.pictures[this.number];
  }

  get last() {
    return Math.max(...this.data.order);
  }

  build() {
    const help = `arrag-map-help-${++views}`;
    this.previous = make("button", { type: "button", textContent: "‹", aria: { label: "Previous picture" } });
    this.next = make("button", { type: "button", textContent: "›", aria: { label: "Next picture" } });
    this.count = make("span", { className: "count" });
    this.overlay = make("select", { aria: { label: "Shown over the picture" } });
    for (const [value, textContent] of Object.entries(OVERLAYS)) {
      this.overlay.append(make("option", { value, textContent }));
    }
    this.score = make("span", { className: "score" });
    this.image = make("img", { alt: "", draggable: false });
    this.canvas = make("canvas", { aria: { hidden: "true" } });
    this.stage = make(
      "div",
      { className: "stage", tabIndex: 0, role: "application", aria: { describedby: help } },
      this.image,
      this.canvas,
    );
    this.legend = make("div", { className: "legend" });
    this.play = make("button", { type: "button", className: "play" });
    this.slider = make("input", { type: "range", min: 0, step: 1, aria: { label: "Drawing order" } });
    this.step = make("output", { className: "step" });
    this.patch = make("canvas", { className: "patch", width: 64, height: 64, aria: { hidden: "true" } });
    this.facts = make("div", { className: "facts", aria: { live: "polite" } });
    this.list = make("ul", { className: "candidates", aria: { label: "Candidates of the patch" } });
    this.status = make("p", { className: "status", role: "status" });
    this.body = make(
      "div",
      { className: "body" },
      make(
        "div",
        { className: "left" },
        make("div", { className: "fit" }, this.stage),
        this.legend,
        make("div", { className: "order" }, this.play, this.slider, this.step),
      ),
      make(
        "div",
        { className: "right" },
        make("div", { className: "here" }, this.patch, this.facts),
        this.list,
      ),
    );
    this.bar = make(
      "div",
      { className: "bar" },
      this.previous,
      this.count,
      this.next,
      this.overlay,
      this.score,
    );
    this.hint = make("p", { id: help, className: "hint" });
    this.element = make(
      "div",
      { className: "arrag-map", role: "group", aria: { label: "Retrieval map" } },
      this.bar,
      this.body,
      this.hint,
      this.status,
    );
    this.listen();
  }

  listen() {
    this.previous.onclick = () => this.choose(this.number - 1);
    this.next.onclick = () => this.choose(this.number + 1);
    this.overlay.onchange = () => {
      this.explain();
      this.paint();
    };
    this.stage.onpointermove = (event) => this.pinned || this.go(this.under(event));
    this.stage.onclick = (event) => this.pin(this.under(event));
    this.stage.onfocus = () => this.paint();
    this.stage.onblur = () => this.paint();
    this.element.onkeydown = (event) => this.key(event);
    this.slider.oninput = () => {
      this.pause();
      this.follow();
    };
    this.play.onclick = () => (this.timer ? this.pause() : this.start());
  }

  // Show the pictures of a run: the data of each, and where its picture and thumbnails are.
  show(pictures) {
    this.pause();
    this.pictures = pictures;
    this.pinned = false;
    this.status.replaceChildren();
    this.choose(0);
  }

  say(text) {
    this.status.textContent = text;
  }

  choose(number) {
    this.pause();
    this.number = Math.min(Math.max(number, 0), Math.max(this.pictures.length - 1, 0));
    if (this.data) {
      const [height, width] = this.data.grid;
      this.stage.style.setProperty("--ratio", width / height);
      this.image.src = this.data.picture;
      this.image.onload = () => this.paint();
      this.stage.setAttribute("aria-label", `Picture of ${height} rows and ${width} columns`);
      this.slider.max = this.last;
      this.slider.value = this.last;
      this.position = Math.min(this.position, width * height - 1);
    }
    this.update();
  }

  update() {
    const there = Boolean(this.data);
    this.element.classList.toggle("empty", !there);
    this.bar.hidden = this.body.hidden = !there;
    const several = this.pictures.length > 1;
    for (const one of [this.previous, this.next, this.count]) one.hidden = !several;
    this.hint.textContent = there ? HELP : WAITING;
    if (!there) return;
    this.count.textContent = `${this.number + 1} / ${this.pictures.length}`;
    this.previous.disabled = this.number === 0;
    this.next.disabled = this.number === this.pictures.length - 1;
    const { score, larger_than } = this.data;
    this.explain();
    this.score.textContent = `Over-copying score ${score.toFixed(3)} (more than ${larger_than})`;
    this.detail();
  }

  // What the colours over the picture mean.
  explain() {
    const shown = this.overlay.value;
    const drawers = [...new Set(this.data.component)].sort((a, b) => a - b);
    const entries = {
      none: [],
      influence: [0, 0.5, 1].map((share) => [colour(share), percent(share)]),
      drawer: drawers.map((one) => [drawerColour(one), this.drawer(one)]),
    }[shown];
    const swatch = (background) => {
      const box = make("span", { className: "swatch" });
      box.style.background = background;
      return box;
    };
    this.legend.replaceChildren(
      ...entries.map(([background, text]) => make("span", {}, swatch(background), text)),
    );
    this.legend.hidden = entries.length === 0;
  }

  under(event) {
    const box = this.stage.getBoundingClientRect();
    const [height, width] = this.data.grid;
    const at = (share, count) => Math.min(Math.max(Math.floor(share * count), 0), count - 1);
    const row = at((event.clientY - box.top) / box.height, height);
    return row * width + at((event.clientX - box.left) / box.width, width);
  }

  go(position) {
    if (position === this.position) return;
    this.position = position;
    this.detail();
  }

  pin(position) {
    this.pinned = !(this.pinned && position === this.position);
    this.position = position;
    this.detail();
  }

  key(event) {
    if (!this.data || event.ctrlKey || event.metaKey || event.altKey) return;
    // ComfyUI has shortcuts on single keys, which are not meant while the view has the focus.
    event.stopPropagation();
    if (event.target !== this.stage) return;
    const [height, width] = this.data.grid;
    const row = Math.floor(this.position / width);
    if (event.key in MOVES) {
      const [down, right] = MOVES[event.key];
      const to = [row + down, (this.position % width) + right];
      if (to[0] >= 0 && to[0] < height && to[1] >= 0 && to[1] < width) {
        this.go(to[0] * width + to[1]);
      }
    } else if (event.key === "Home") this.go(row * width);
    else if (event.key === "End") this.go(row * width + width - 1);
    else if (event.key === "Enter" || event.key === " ") this.pin(this.position);
    else if (event.key === "Escape" && this.pinned) this.pin(this.position);
    else return;
    event.preventDefault();
  }

  start() {
    if (Number(this.slider.value) >= this.last) this.slider.value = 0;
    const stride = Math.max(1, Math.ceil(this.last / STEPS));
    this.timer = setInterval(() => {
      if (!this.element.isConnected) return this.pause();
      this.slider.value = Number(this.slider.value) + stride;
      this.follow();
      if (Number(this.slider.value) >= this.last) this.pause();
    }, TICK);
    this.label();
  }

  pause() {
    clearInterval(this.timer);
    this.timer = null;
    this.label();
  }

  label() {
    this.play.textContent = this.timer ? "⏸" : "▶";
    this.play.setAttribute("aria-label", this.timer ? "Pause" : "Play the drawing order");
  }

  // The slider has moved: go to the token that was drawn last.
  follow() {
    const reached = Number(this.slider.value);
    const drawn = this.data.order.indexOf(reached);
    if (reached > 0 && drawn >= 0 && !this.pinned) this.position = drawn;
    this.detail();
  }

  detail() {
    this.paint();
    this.step.textContent = `${this.slider.value} / ${this.last}`;
    this.facts.replaceChildren(...this.lines().map((text) => make("p", { textContent: text })));
    const listed = this.data.candidates[this.position];
    const none = make("li", { className: "none", textContent: "No patch was retrieved here." });
    this.list.replaceChildren(...(listed.length ? listed.map((one) => this.candidate(one)) : [none]));
    this.stage.classList.toggle("pinned", this.pinned);
  }

  lines() {
    const { grid, component, order, weight, owed, p_model } = this.data;
    const i = this.position;
    const row = Math.floor(i / grid[1]) + 1;
    return [
      `Row ${row}, column ${(i % grid[1]) + 1}${this.pinned ? ", pinned" : ""}`,
      `${this.drawer(component[i])}${order[i] ? `, token ${order[i]}` : ""}`,
      `${percent(owed[i])} owed to retrieval, weight ${weight[i].toFixed(2)}`,
      `${percent(p_model[i])} probable under the model`,
    ];
  }

  drawer(component) {
    if (component === KEPT) return "Kept";
    if (component === MODEL) return "Drawn by the model";
    return `Drawn by layer ${this.data.layers[component] + 1}`;
  }

  candidate([number, place, distance, share, same]) {
    const source = this.data.sources[number];
    const facts = [percent(share), `distance ${distance.toFixed(2)}`];
    if (same) facts.push("same token");
    if (this.data.layers.length > 1) facts.push(`layer ${this.data.layers[source.layer] + 1}`);
    const item = make(
      "li",
      { className: same ? "same" : "" },
      this.thumbnail(number, place),
      make(
        "div",
        { className: "words" },
        make("strong", { textContent: source.name || "(no name)", title: source.name }),
        make("span", { className: "caption", textContent: source.caption, title: source.caption }),
        make("span", { className: "numbers", textContent: facts.join(", ") }),
        make("span", {
          className: "caption",
          textContent: [source.licence || "licence unknown", source.origin].filter(Boolean).join(", "),
          title: source.origin,
        }),
      ),
    );
    if (source.exclude) item.append(this.excluder(source));
    return item;
  }

  excluder(source) {
    const layer = this.data.layers[source.layer];
    const button = make("button", { type: "button", className: "exclude" });
    const label = () => {
      const out = this.sources.excludes(layer, source.exclude);
      button.textContent = out ? "Undo" : "Exclude";
      button.setAttribute("aria-label", `${out ? "No longer exclude" : "Exclude"} ${source.name}`);
      button.setAttribute("aria-pressed", String(out));
    };
    button.onclick = () => {
      this.say(this.sources.toggle(layer, source.exclude));
      label();
    };
    label();
    return button;
  }

  // The thumbnail of a source, with a frame around the place of the patch.
  thumbnail(number, place) {
    const { grid, cell, columns, atlas, thumbnails } = this.data;
    const frame = make("span", { className: "frame" });
    const box = make("div", { className: "thumbnail", aria: { hidden: "true" } }, frame);
    Object.assign(box.style, { width: `${cell[0]}px`, height: `${cell[1]}px` });
    if (number < thumbnails) {
      const x = (number % columns) * cell[0];
      const y = Math.floor(number / columns) * cell[1];
      box.style.backgroundImage = `url("${atlas}")`;
      box.style.backgroundPosition = `-${x}px -${y}px`;
    }
    Object.assign(frame.style, {
      left: `${(100 * (place % grid[1])) / grid[1]}%`,
      top: `${(100 * Math.floor(place / grid[1])) / grid[0]}%`,
      width: `${100 / grid[1]}%`,
      height: `${100 / grid[0]}%`,
    });
    return box;
  }

  paint() {
    if (!this.data) return;
    const [height, width] = this.data.grid;
    const side = Math.max(8, Math.floor(768 / Math.max(height, width)));
    Object.assign(this.canvas, { width: width * side, height: height * side });
    const pen = this.canvas.getContext("2d");
    const reached = Number(this.slider.value);
    for (let i = 0; i < width * height; i++) {
      const [x, y] = [(i % width) * side, Math.floor(i / width) * side];
      this.tint(pen, i, [x, y, side, side]);
      if (this.data.order[i] > reached) {
        Object.assign(pen, { globalAlpha: 0.85, fillStyle: "#1a1a1a" });
        pen.fillRect(x, y, side, side);
      }
    }
    pen.globalAlpha = 1;
    const here = [(this.position % width) * side, Math.floor(this.position / width) * side];
    const ring = (inset, lineWidth, strokeStyle) => {
      Object.assign(pen, { lineWidth, strokeStyle });
      pen.strokeRect(here[0] + inset, here[1] + inset, side - 2 * inset, side - 2 * inset);
    };
    ring(0, Math.max(6, side / 8), "#000");
    ring(0, Math.max(3, side / 16), this.pinned ? "#facc15" : "#fff");
    this.zoom();
  }

  tint(pen, i, box) {
    const { owed, component } = this.data;
    const shown = this.overlay.value;
    if (shown === "none") return;
    pen.globalAlpha = 0.6;
    pen.fillStyle = shown === "influence" ? colour(owed[i]) : drawerColour(component[i]);
    pen.fillRect(...box);
  }

  // The patch itself, enlarged.
  zoom() {
    const pen = this.patch.getContext("2d");
    const [height, width] = this.data.grid;
    const { naturalWidth: w, naturalHeight: h } = this.image;
    pen.clearRect(0, 0, 64, 64);
    if (!w || !this.image.complete) return;
    const x = ((this.position % width) * w) / width;
    const y = (Math.floor(this.position / width) * h) / height;
    pen.drawImage(this.image, x, y, w / width, h / height, 0, 0, 64, 64);
  }
}
