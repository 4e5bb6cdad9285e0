// The form: what can be chosen, what empty fields stand for, and its state.

import { ControlNets, fill, Loras } from "./adapter_rows.js";
import { $ } from "./dom.js";
import { clearError, clearErrors, showError } from "./field_errors.js";
import { FIELDS } from "./fields.js";
import { ImageField, limitFiles } from "./image_field.js";
import { MaskField } from "./mask_field.js";

const NOTES = ["image-note", "lora-note", "controlnet-note", "more-note"];
const NONE = "none";

export class Form {
  /** @param changed called after anything was changed */
  constructor(changed) {
    this.server = null;
    this.changed = () => {
      this.showNotes();
      changed();
    };
    this.loras = new Loras(this.changed);
    this.controlnets = new ControlNets(() => this.imagesChanged($("controlnets")));
    this.image = new ImageField($("image-input"), "Initial image", (image) => {
      $("image-settings").hidden = !image;
      this.mask.set(null); // it was drawn for another image
      this.imagesChanged($("image-input"));
    });
    this.mask = new MaskField(this.image, () => this.imagesChanged($("mask-field")));
    this.wire();
  }

  wire() {
    for (const range of this.ranges()) {
      const field = $(range.dataset.for);
      range.addEventListener("input", () => {
        field.value = range.value;
        clearError(field);
      });
      field.addEventListener("input", () => this.slide(range));
    }
    $("form").addEventListener("input", (event) => {
      clearError(event.target);
      this.changed();
    });
    $("form").addEventListener("field-error", (event) => showError(event.target, event.detail));
    $("model").addEventListener("change", () => this.modelChanged());
    $("scheduler").addEventListener("change", () => this.fillSchedule($("schedule").value));
    $("swap").onclick = () => {
      [$("width").value, $("height").value] = [$("height").value, $("width").value];
      this.changed();
    };
    $("seed-random").onclick = () => this.setSeed("");
  }

  ranges() {
    return document.querySelectorAll("input[data-for]");
  }

  setSeed(text) {
    $("seed").value = text;
    clearError($("seed"));
    this.changed();
  }

  /** What the server offers; the form's choices and limits follow it. */
  offer(server) {
    this.server = server;
    fill($("model"), this.modelNames, $("model").value || this.modelNames[0]);
    this.fillSampler($("scheduler").value);
    this.loras.offer(server.loras);
    this.controlnets.offer(server.controlnets);
    $("lora-empty").hidden = server.loras.length > 0;
    $("controlnet-empty").hidden = server.controlnets.length > 0;
    for (const [name, { limit }] of Object.entries(FIELDS)) {
      if (limit && server.limits[limit]) $(name).max = server.limits[limit];
    }
    const steps = document.querySelector('[data-for="num_inference_steps"]');
    if (server.limits.max_steps) steps.max = Math.min(steps.max, server.limits.max_steps);
    // several images fit into one request, a third larger as base64
    if (server.limits.max_body) limitFiles(server.limits.max_body / 5);
    this.modelChanged();
  }

  get modelNames() {
    return (this.server?.models ?? []).map((each) => each.name);
  }

  get model() {
    const models = this.server?.models ?? [];
    return models.find((each) => each.name === $("model").value) ?? models[0] ?? {};
  }

  /** Of which width and height are multiples. */
  get unit() {
    return this.model.downscale ?? 8;
  }

  /** The size without width and height: that of the first input image, or the model's. */
  get defaultSize() {
    const control = this.controlnets.value.find((each) => each.image)?.image;
    const { width, height } = this.image.value ?? control ?? this.model;
    if (!width) return { width, height };
    const rounded = (side) => Math.max(1, Math.floor(side / this.unit)) * this.unit;
    return { width: rounded(width), height: rounded(height) };
  }

  fillSampler(chosen) {
    const { schedulers = [], schedulerLabels = {} } = this.server ?? {};
    const labels = { ...schedulerLabels, "": "Default" };
    fill($("scheduler"), ["", ...schedulers], chosen, labels);
  }

  fillSchedule(chosen) {
    const allowed = this.server?.schedulesOf($("scheduler").value, this.model) ?? [];
    fill($("schedule"), ["", ...allowed], chosen, { "": "Default" });
  }

  modelChanged() {
    this.showDefaults();
    this.fillSchedule($("schedule").value);
  }

  imagesChanged(field) {
    clearError(field);
    this.showDefaults();
    this.changed();
  }

  /** Show in empty fields what they stand for. */
  showDefaults() {
    const { num_inference_steps, guidance_scale, strength } = this.model;
    const defaults = {
      num_inference_steps,
      guidance_scale,
      ...this.defaultSize,
      strength: this.mask.value ? 1 : strength,
      num_images_per_prompt: 1,
      mask_blur: 0,
    };
    for (const [name, value] of Object.entries(defaults)) $(name).placeholder = value ?? "default";
    for (const range of this.ranges()) this.slide(range);
  }

  /** Move a slider to the number in its field. */
  slide(range) {
    const field = $(range.dataset.for);
    const middle = (Number(range.min) + Number(range.max)) / 2;
    range.value = field.value || (Number.isNaN(Number(field.placeholder)) ? middle : field.placeholder);
  }

  /** Show in the head of each section what it holds. */
  showNotes() {
    const names = (rows) => rows.rows.map((row) => row.select.value).join(", ") || NONE;
    const mask = this.mask.value ? "image and mask" : "image";
    $("image-note").textContent = this.image.value ? mask : NONE;
    $("lora-note").textContent = names(this.loras);
    $("controlnet-note").textContent = names(this.controlnets);
    $("more-note").textContent = $("more").value.trim() ? "in use" : NONE;
    for (const id of NOTES) $(id).classList.toggle("active", $(id).textContent !== NONE);
    const several = Number($("num_images_per_prompt").value) > 1;
    $("one-seed-row").hidden = !several && !$("one_seed").checked;
  }

  /** Everything that the form holds, to be applied again later. */
  state() {
    const valueOf = (field) => (field.type === "checkbox" ? field.checked : field.value);
    return {
      values: Object.fromEntries(Object.keys(FIELDS).map((name) => [name, valueOf($(name))])),
      image: this.image.value,
      mask: this.mask.value,
      loras: this.loras.value,
      controlnets: this.controlnets.value,
    };
  }

  /** Set the form to a state; what the state leaves out becomes empty. */
  apply({ values = {}, image = null, mask = null, loras = [], controlnets = [] }) {
    clearErrors();
    this.applyValues(values);
    this.image.set(image);
    if (image) this.mask.set(mask);
    this.loras.set(loras);
    this.controlnets.set(controlnets);
    this.modelChanged();
    const used = {
      "image-section": image,
      "lora-section": loras.length,
      "controlnet-section": controlnets.length,
      "more-section": values.more,
    };
    for (const [id, uses] of Object.entries(used)) if (uses) $(id).open = true;
    this.changed();
  }

  applyValues(values) {
    for (const name of Object.keys(FIELDS)) {
      const field = $(name);
      const value = values[name] ?? "";
      if (field.type === "checkbox") field.checked = value === true;
      else if (field.tagName !== "SELECT") field.value = value;
    }
    fill($("model"), this.modelNames, values.model || this.model.name);
    this.fillSampler(values.scheduler ?? "");
    this.fillSchedule(values.schedule ?? "");
    $("resize_mode").value = values.resize_mode || "stretch";
  }
}
