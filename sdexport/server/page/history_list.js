// The thumbnails of the history.

import { $, button, icon, ICONS, make, toast } from "./dom.js";
import { HistoryStore } from "./history_store.js";
import { boundedCanvas, toBlob } from "./image_field.js";

const THUMBNAIL = 256;
const NOT_STORED = "This browser does not let the page store images: they are kept until the page closes.";
const FULL = "The browser's storage is full: this image is kept until the page closes.";

export class HistoryList {
  /** @param chosen called with an entry: show it, and restore its settings */
  constructor(chosen) {
    this.chosen = chosen;
    this.store = new HistoryStore();
    this.urls = new Map();
    $("history-clear").onclick = () => this.clear();
  }

  async open() {
    if (!(await this.store.open())) $("history-empty").textContent = NOT_STORED;
    this.draw();
  }

  /** Add what a job made: {png, state, parameters, width, height}. */
  async add(entry) {
    entry.created = Date.now();
    entry.thumbnail = await thumbnail(entry.png);
    const { stored, removed } = await this.store.add(entry);
    for (const each of removed) this.release(each);
    if (!stored && this.store.database) toast(FULL);
    this.draw();
  }

  draw() {
    const { entries } = this.store;
    $("history-empty").hidden = entries.length > 0;
    $("history-clear").hidden = !entries.length;
    $("history-count").textContent = entries.length ? String(entries.length) : "";
    $("history").replaceChildren(...entries.map((entry) => this.item(entry)));
  }

  item(entry) {
    if (!this.urls.has(entry)) this.urls.set(entry, URL.createObjectURL(entry.thumbnail));
    const prompt = entry.parameters.prompt || "no prompt";
    const time = new Date(entry.created).toLocaleString();
    const image = make("img", { src: this.urls.get(entry), alt: "", loading: "lazy" });
    const shown = `Show, and restore the settings of: ${prompt}, ${time}`;
    const deleted = `Delete: ${prompt}, ${time}`;
    return make("li", {},
      button(image, () => this.chosen(entry), { class: "thumb", title: prompt, "aria-label": shown }),
      button(icon(ICONS.remove), () => this.remove(entry), { class: "thumb-delete", "aria-label": deleted }));
  }

  release(entry) {
    URL.revokeObjectURL(this.urls.get(entry));
    this.urls.delete(entry);
  }

  async remove(entry) {
    const place = this.store.entries.indexOf(entry);
    await this.store.remove(entry);
    this.release(entry);
    this.draw();
    const buttons = document.querySelectorAll("#history .thumb-delete");
    (buttons[Math.min(place, buttons.length - 1)] ?? $("prompt")).focus();
  }

  async clear() {
    const { length } = this.store.entries;
    const images = length === 1 ? "One image is" : `${length} images are`;
    const dialog = $("confirm-dialog");
    $("confirm-text").textContent = `${images} deleted from this browser.`;
    dialog.returnValue = "no";
    dialog.showModal();
    await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
    if (dialog.returnValue !== "yes") return;
    await this.store.clear();
    for (const entry of [...this.urls.keys()]) this.release(entry);
    this.draw();
    $("prompt").focus();
  }
}

async function thumbnail(png) {
  const bitmap = await createImageBitmap(png);
  const canvas = boundedCanvas(bitmap.width, bitmap.height, THUMBNAIL);
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return toBlob(canvas, "image/webp", 0.85);
}
