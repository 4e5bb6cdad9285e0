// Where images appear: previews and progress while a job runs, then its images.

import { $, icon, ICONS, make } from "./dom.js";

export class Stage {
  /** @param actions {useAsImage(entry), restore(entry)} */
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
      frame.style.setProperty("--ratio", `${width || 1} / ${height || 1}`);
      frame.style.setProperty("--ratio-number", (width || 1) / (height || 1));
      if (index === 0) this.preview = frame.firstChild;
      return frame;
    });
    this.show(frames);
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
    const { parameters: settings } = entry;
    const picture = make("div", { class: "picture" }, make("img", { src: url, alt: settings.prompt || "Generated image" }));
    const seed = settings.seed ?? "unknown";
    const tile = make("figure", { class: "tile" }, picture,
      make("figcaption", {},
        make("span", { class: "facts" }, `${entry.width} × ${entry.height}`, make("span", {}, `Seed ${seed}`)),
        make("span", { class: "tools" },
          make("a", { class: "button", href: url, download: fileName(settings) }, icon(ICONS.download), make("span", {}, "Download")),
          make("button", { type: "button", class: "quiet", onclick: () => this.actions.useAsImage(entry) }, icon(ICONS.edit), make("span", {}, "Edit")),
          make("button", { type: "button", class: "quiet", onclick: () => this.actions.restore(entry) }, icon(ICONS.restore), make("span", {}, "Settings")))),
      details(settings));
    tile.style.setProperty("--ratio", `${entry.width} / ${entry.height}`);
    tile.style.setProperty("--ratio-number", entry.width / entry.height);
    return tile;
  }
}

const SHOWN = [
  ["prompt", "Prompt"], ["negative_prompt", "Negative prompt"], ["model", "Model"], ["scheduler", "Sampler"], ["schedule", "Schedule"],
  ["num_inference_steps", "Steps"], ["guidance_scale", "Guidance"], ["strength", "Strength"],
];

function details(settings) {
  const rows = SHOWN.filter(([name]) => settings[name] !== null && settings[name] !== undefined && settings[name] !== "")
    .flatMap(([name, label]) => [make("dt", {}, label), make("dd", {}, String(settings[name]))]);
  for (const [name, label] of [["loras", "LoRA"], ["controlnets", "ControlNet"]]) {
    for (const each of settings[name] ?? []) rows.push(make("dt", {}, label), make("dd", {}, `${each.name}, scale ${each.scale}`));
  }
  return make("details", { class: "about" }, make("summary", {}, "How it was made"), make("dl", {}, ...rows));
}

function fileName({ prompt, seed }) {
  const words = (prompt ?? "").normalize("NFKD").replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-+|-+$/g, "").slice(0, 60);
  return `${words || "image"}-${seed ?? "seed"}.png`;
}
