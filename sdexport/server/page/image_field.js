// A field that takes an image: chosen, dropped or given by another part of the page.

import { make, icon, ICONS } from "./dom.js";

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
    const share = Math.min(1, LONGEST_SIDE / Math.max(width, height));
    const canvas = make("canvas", { width: Math.max(1, Math.round(width * share)), height: Math.max(1, Math.round(height * share)) });
    canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    let encoded = await toBlob(canvas, "image/png");
    if (encoded.size > largestFile) encoded = await toBlob(canvas, "image/jpeg", 0.95);
    if (encoded.size > largestFile) throw new Error(`${name} is larger than the server accepts. Choose a smaller image.`);
    const note = share < 1 ? `Scaled down from ${width} × ${height}.` : "Encoded anew, since the server does not read this format.";
    return { blob: encoded, name, width: canvas.width, height: canvas.height, note };
  } finally {
    bitmap.close();
  }
}

export function toBlob(canvas, type, quality) {
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("The browser cannot encode the image."))), type, quality);
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
    this.file = make("input", { type: "file", accept: "image/*", hidden: true, "aria-label": `${label}, file` });
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
    const choose = () => this.file.click();
    const hadFocus = this.host.contains(document.activeElement);
    if (!this.value) {
      const button = make("button", { type: "button", class: "dropzone", onclick: choose }, make("strong", {}, `Choose ${this.label.toLowerCase()}`), make("span", {}, "or drop it here"));
      this.host.replaceChildren(button, this.file);
    } else {
      const { name, width, height, note } = this.value;
      this.host.replaceChildren(
        make("div", { class: "chosen" },
          make("div", { class: "chosen-picture" }, make("img", { src: this.url, alt: `${this.label}: ${name}` })),
          make("div", { class: "chosen-text" },
            make("strong", { title: name }, name), make("span", {}, `${width} × ${height}`), note ? make("span", { class: "hint" }, note) : null,
            make("div", { class: "row" },
              make("button", { type: "button", class: "link", onclick: choose }, "Replace"),
              make("button", { type: "button", class: "link", onclick: () => this.set(null), "aria-label": `Remove: ${this.label}` }, "Remove")))),
        this.file);
    }
    if (hadFocus) this.host.querySelector("button").focus();
  }
}
