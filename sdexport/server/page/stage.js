// Where images appear: previews and progress while a job runs, then its images.

import { $, button, icon, ICONS, make } from "./dom.js";

export class Stage {
  /** @param actions {useAsImage(entry), restore(entry), modelName(settings)} */
  constructor(actions) {
    this.actions = actions;
    this.urls = [];
    this.preview = null;
  }

  /** Frames of the right shape, without images yet. */
  start(count, width, height) {
    this.clear();
    const frames = Array.from({ length: count }, (_, index) => {
      const frame = make("figure", { class: "tile waiting" }, make("div", { class: "picture" }));
      shape(frame, width, height);
      if (index === 0) this.preview = frame.firstChild;
      return frame;
    });
    this.show(frames);
    if (count === 1) shape($("progress"), width, height);
    else $("progress").removeAttribute("style");
    this.progress("Sending", null);
  }

  show(frames) {
    $("empty").hidden = frames.length > 0;
    $("gallery").hidden = !frames.length;
    $("gallery").dataset.count = frames.length;
    $("gallery").replaceChildren(...frames);
  }

  /** The preview after a step. */
  showPreview(url) {
    if (!this.preview || !url.startsWith("data:image/")) return;
    const shown = this.preview.querySelector("img");
    if (shown) shown.src = url;
    else this.preview.replaceChildren(make("img", { src: url, alt: "Preview", class: "preview" }));
    this.preview.parentElement.classList.remove("waiting");
  }

  /** @param share 0..1, or null while it is not known */
  progress(label, share, time = "") {
    $("progress").hidden = false;
    $("progress-label").textContent = label;
    $("progress-time").textContent = time;
    if (share === null) $("progress-bar").removeAttribute("value");
    else $("progress-bar").value = share;
  }

  stop() {
    $("progress").hidden = true;
    this.preview = null;
  }

  /** Images with what can be done with them. */
  finish(entries) {
    this.clear();
    this.show(entries.map((entry) => this.tile(entry)));
  }

  clear() {
    this.stop();
    for (const url of this.urls) URL.revokeObjectURL(url);
    this.urls = [];
    this.show([]);
  }

  tile(entry) {
    const url = URL.createObjectURL(entry.png);
    this.urls.push(url);
    const { parameters: settings, width, height } = entry;
    const image = make("img", { src: url, alt: settings.prompt || "Generated image" });
    const seed = make("span", {}, `Seed ${settings.seed ?? "unknown"}`);
    const tile = make("figure", { class: "tile" },
      make("div", { class: "picture" }, image),
      make("figcaption", {},
        make("span", { class: "facts" }, `${width} × ${height}`, seed),
        this.tools(entry, url),
        details({ ...settings, model: this.actions.modelName(settings) })));
    shape(tile, width, height);
    return tile;
  }

  tools(entry, url) {
    const download = { class: "button", href: url, download: fileName(entry.parameters) };
    const tool = (path, text, run) => {
      const element = button(icon(path), run, { class: "quiet" });
      element.append(make("span", {}, text));
      return element;
    };
    return make("span", { class: "tools" },
      make("a", download, icon(ICONS.download), make("span", {}, "Download")),
      tool(ICONS.edit, "Edit", () => this.actions.useAsImage(entry)),
      tool(ICONS.restore, "Settings", () => this.actions.restore(entry)));
  }
}

/** Let a tile have the shape of its image before there is one, or the progress its width. */
function shape(element, width = 1, height = 1) {
  element.style.setProperty("--ratio", `${width} / ${height}`);
  element.style.setProperty("--ratio-number", width / height);
}

const SHOWN = {
  prompt: "Prompt",
  negative_prompt: "Negative prompt",
  model: "Model",
  scheduler: "Sampler",
  schedule: "Schedule",
  num_inference_steps: "Steps",
  guidance_scale: "Guidance",
  strength: "Strength",
};

function details(settings) {
  const rows = [];
  const add = (label, text) => rows.push(make("dt", {}, label), make("dd", {}, text));
  for (const [name, label] of Object.entries(SHOWN)) {
    const value = settings[name] ?? "";
    if (value !== "") add(label, String(value));
  }
  for (const { name, scale } of settings.loras ?? []) add("LoRA", `${name}, scale ${scale}`);
  for (const { name, scale } of settings.controlnets ?? []) add("ControlNet", `${name}, scale ${scale}`);
  const list = make("dl", {}, ...rows);
  return make("details", { class: "about" }, make("summary", {}, "How it was made"), list);
}

/** A name with the first words of the prompt and the seed. */
function fileName({ prompt, seed }) {
  const letters = (prompt ?? "").normalize("NFKD").replace(/[^\p{L}\p{N}]+/gu, "-");
  const words = letters.slice(0, 60).replace(/^-+|-+$/g, "");
  return `${words || "image"}-${seed ?? "seed"}.png`;
}
