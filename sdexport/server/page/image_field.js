// A field that takes an image: chosen, dropped or given by another part of the page.

import { button, make } from "./dom.js";

const AS_THEY_ARE = ["image/png", "image/jpeg", "image/webp"];
const LONGEST_SIDE = 2048;
let largestFile = 8 * 2 ** 20;

/** Bytes up to which a file is sent as it is; set once the server's limit is known. */
export function limitFiles(bytes) {
  largestFile = bytes;
}

/** An image as it is sent: {blob, name, width, height, note}.
 *  Files of other formats and large ones are encoded anew, which `note` says.
 *  @throws Error if it is no image. */
export async function prepared(blob, name = blob.name ?? "image.png") {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob);
  } catch {
    throw new Error(`${name} cannot be read as an image. Choose a PNG, JPEG or WebP file.`);
  }
  try {
    const { width, height } = bitmap;
    const known = AS_THEY_ARE.includes(blob.type);
    if (known && blob.size <= largestFile) return { blob, name, width, height, note: "" };
    const canvas = boundedCanvas(width, height, LONGEST_SIDE);
    canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    let encoded = await toBlob(canvas, "image/png");
    if (encoded.size > largestFile) encoded = await toBlob(canvas, "image/jpeg", 0.95);
    if (encoded.size > largestFile) {
      throw new Error(`${name} is larger than the server accepts. Choose a smaller image.`);
    }
    const note = canvas.width < width ? `Scaled down from ${width} × ${height}.` : "Encoded anew.";
    return { blob: encoded, name, width: canvas.width, height: canvas.height, note };
  } finally {
    bitmap.close();
  }
}

/** A canvas of a size, or with the same shape and a longer side that is shorter. */
export function boundedCanvas(width, height, longest) {
  const share = Math.min(1, longest / Math.max(width, height));
  const side = (pixels) => Math.max(1, Math.round(pixels * share));
  return make("canvas", { width: side(width), height: side(height) });
}

export function toBlob(canvas, type, quality) {
  return new Promise((resolve, reject) => {
    const done = (blob) => {
      if (blob) resolve(blob);
      else reject(new Error("The browser cannot encode the image."));
    };
    canvas.toBlob(done, type, quality);
  });
}

/** A blob as data URL, as the server's JSON takes images. */
export function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error("The file cannot be read any more. Choose it again."));
    reader.readAsDataURL(blob);
  });
}

export class ImageField {
  /** @param host element that becomes the field
   *  @param label what the image is, such as "Initial image"
   *  @param changed called with the image or null */
  constructor(host, label, changed = () => {}) {
    Object.assign(this, { host, label, changed, value: null, url: null, turn: 0 });
    host.classList.add("image-field");
    const named = { "aria-label": `${label}, file` };
    this.file = make("input", { type: "file", accept: "image/*", hidden: true, ...named });
    this.file.addEventListener("change", () => {
      if (this.file.files.length) this.take(this.file.files[0]);
      this.file.value = "";
    });
    host.addEventListener("dragover", (event) => {
      if (!event.dataTransfer.types.includes("Files")) return;
      event.preventDefault();
      event.stopPropagation();
      host.classList.add("over");
    });
    host.addEventListener("dragleave", () => host.classList.remove("over"));
    host.addEventListener("drop", (event) => {
      event.preventDefault();
      event.stopPropagation();
      host.classList.remove("over");
      document.dispatchEvent(new Event("drop-handled"));
      if (event.dataTransfer.files.length) this.take(event.dataTransfer.files[0]);
    });
    this.draw();
  }

  /** Use a file or blob, or say why it cannot be used. */
  async take(blob, name) {
    const turn = ++this.turn;
    try {
      const image = await prepared(blob, name);
      if (turn === this.turn) this.set(image);
    } catch (error) {
      if (turn === this.turn) this.fail(error.message);
    }
  }

  /** @param image as `prepared` returns it, or null */
  set(image) {
    this.turn += 1;
    if (this.url) URL.revokeObjectURL(this.url);
    this.value = image;
    this.url = image && URL.createObjectURL(image.blob);
    this.draw();
    this.changed(image);
  }

  fail(message) {
    this.host.dispatchEvent(new CustomEvent("field-error", { bubbles: true, detail: message }));
  }

  draw() {
    const hadFocus = this.host.contains(document.activeElement);
    this.host.replaceChildren(this.value ? this.chosen() : this.dropzone(), this.file);
    if (hadFocus) this.host.querySelector("button").focus();
  }

  choose() {
    this.file.click();
  }

  dropzone() {
    const zone = button("", () => this.choose(), { class: "dropzone" });
    const title = make("strong", {}, `Choose ${this.label.toLowerCase()}`);
    zone.replaceChildren(title, make("span", {}, "or drop it here"));
    return zone;
  }

  chosen() {
    const { name, width, height, note } = this.value;
    const image = make("img", { src: this.url, alt: `${this.label}: ${name}` });
    const removed = { class: "link", "aria-label": `Remove: ${this.label}` };
    return make("div", { class: "chosen" },
      make("div", { class: "chosen-picture" }, image),
      make("div", { class: "chosen-text" },
        make("strong", { title: name }, name),
        make("span", {}, `${width} × ${height}`),
        note ? make("span", { class: "hint" }, note) : null,
        make("div", { class: "row" },
          button("Replace", () => this.choose(), { class: "link" }),
          button("Remove", () => this.set(null), removed))));
  }
}
