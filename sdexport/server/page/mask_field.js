// The mask of the initial image: drawn, loaded, shown over the small image.

import { $ } from "./dom.js";
import { clearError, showError } from "./field_errors.js";
import { marked, MaskEditor } from "./mask_editor.js";

const OVERLAY = 160; // pixels of its width

export class MaskField {
  /** @param image the field of the initial image
   *  @param changed called after the mask was changed */
  constructor(image, changed) {
    Object.assign(this, { image, changed, value: null, editor: new MaskEditor() });
    $("mask-draw").onclick = () => this.draw();
    $("mask-load").onclick = () => $("mask-file").click();
    $("mask-file").onchange = () => this.load();
    $("mask-remove").onclick = () => {
      this.set(null);
      $("mask-draw").focus();
    };
  }

  /** @param mask a PNG that is bright where new content is generated, or null */
  set(mask) {
    this.value = mask;
    clearError($("mask-field"));
    this.show();
    this.changed();
  }

  async draw() {
    clearError($("mask-field"));
    const image = this.image.value;
    try {
      const mask = await this.editor.open(this.image.url, image, this.value);
      if (mask !== undefined && this.image.value === image) this.set(mask);
    } catch (error) {
      showError($("mask-field"), error.message);
    }
    $("mask-draw").focus();
  }

  async load() {
    const [file] = $("mask-file").files;
    $("mask-file").value = "";
    if (!file) return;
    const image = this.image.value;
    try {
      await marked(file, image.width, image.height);
      if (this.image.value === image) this.set(file);
    } catch {
      showError($("mask-field"), `${file.name} cannot be read as an image.`);
    }
  }

  /** Draw the mask over the small image. */
  async show() {
    const mask = this.value;
    $("mask-remove").hidden = $("mask-settings").hidden = !mask;
    $("mask-draw").textContent = mask ? "Edit the mask" : "Draw a mask";
    const picture = document.querySelector("#image-input .chosen-picture");
    if (!picture) return;
    const { width, height } = this.image.value;
    const shownHeight = Math.max(1, Math.round((OVERLAY * height) / width));
    const overlay = mask && (await marked(mask, OVERLAY, shownHeight));
    if (mask !== this.value) return; // changed meanwhile
    picture.querySelector("canvas")?.remove();
    if (overlay) {
      overlay.className = "mask-overlay";
      picture.append(overlay);
    }
  }
}
