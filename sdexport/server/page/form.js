// The form: its state, checks before anything is sent, errors next to fields, and the request.

import { $, make } from "./dom.js";
import { ControlNets, fill, Loras, number } from "./adapter_rows.js";
import { dataUrl, ImageField, limitFiles } from "./image_field.js";
import { marked, MaskEditor } from "./mask_editor.js";

/** Fields with one text or number each. `of`: sent only with an image or a mask. */
const FIELDS = {
  prompt: {}, negative_prompt: {}, model: {}, scheduler: {}, schedule: {},
  num_inference_steps: { label: "Steps", integer: true, min: 1, limit: "max_steps" },
  guidance_scale: { label: "Guidance", min: 0, max: 1000 },
  width: { label: "Width", integer: true, min: 8, multiple: 8 },
  height: { label: "Height", integer: true, min: 8, multiple: 8 },
  num_images_per_prompt: { label: "Images", integer: true, min: 1, limit: "max_images" },
  seed: { label: "Seed" }, one_seed: {},
  strength: { label: "Strength", min: 0, max: 1, of: "image" },
  resize_mode: { of: "image" },
  mask_blur: { label: "Mask blur", min: 0, max: 1000, of: "mask" },
  paste_back: { of: "mask" },
  more: {},
};
const LARGEST_SEED = 2n ** 64n - 2n; // the next one is -1, a random one
/** Arguments that the fields make. */
const ARGUMENTS = [...Object.keys(FIELDS).filter((name) => !["one_seed", "more"].includes(name)), "image", "mask_image", "loras", "controlnets", "previews"];
/** What the server's messages say -> the element that shows the error. Names that are words of
 *  English count only where a message begins with them. */
const SHOWN_AT = [
  ...ARGUMENTS.map((name) => [name.includes("_") ? new RegExp(`\\b${name}\\b`) : new RegExp(`^${name}\\b`), name]),
  [/^\d+ images\b/, "num_images_per_prompt"], [/^(got )?\d+ seeds\b/, "seed"], [/^\d+x\d+\b.* pixels/, "width"],
  [/\b(sampler|scheduler)\b/, "scheduler"], [/\bschedule\b/, "schedule"],
  [/\bLoRAs?\b/, "loras"], [/\bControlNets?\b|\bcontrol image/, "controlnets"], [/^(an |the )?input image/, "image"], [/^(a |the )?mask\b/, "mask_image"],
];
const ELEMENTS = { image: "image-input", mask_image: "mask-field" };
const DEFAULT_SAMPLER = { "": "Model's default" };

export class Form {
  constructor(changed) {
    this.changed = () => { this.notes(); changed(); };
    this.server = null;
    this.mask = null;
    this.loras = new Loras(this.changed);
    this.controlnets = new ControlNets(this.changed);
    this.image = new ImageField($("image-input"), "Initial image", (image) => this.imageChanged(image));
    this.editor = new MaskEditor();
    this.wire();
  }

  wire() {
    for (const range of document.querySelectorAll("input[data-for]")) {
      const field = $(range.dataset.for);
      range.addEventListener("input", () => { field.value = range.value; this.clearError(field); this.changed(); });
      field.addEventListener("input", () => this.slide(range));
    }
    $("form").addEventListener("input", (event) => { this.clearError(event.target); this.changed(); });
    $("form").addEventListener("field-error", (event) => this.showError(event.target, event.detail));
    $("model").addEventListener("change", () => this.modelChanged());
    $("scheduler").addEventListener("change", () => this.offerSchedules());
    $("swap").onclick = () => {
      [$("width").value, $("height").value] = [$("height").value, $("width").value];
      this.changed();
    };
    $("seed-random").onclick = () => { $("seed").value = ""; this.clearError($("seed")); this.changed(); };
    $("mask-draw").onclick = () => this.drawMask();
    $("mask-load").onclick = () => $("mask-file").click();
    $("mask-file").onchange = () => this.loadMask();
    $("mask-remove").onclick = () => { this.setMask(null); $("mask-draw").focus(); };
  }

  /** What the server offers; the form's choices and limits follow it. */
  offer(server) {
    this.server = server;
    fill($("model"), server.models.map((each) => each.name), $("model").value || server.models[0]?.name);
    this.fillSampler($("scheduler").value);
    this.loras.offer(server.loras);
    this.controlnets.offer(server.controlnets);
    $("lora-empty").hidden = server.loras.length > 0;
    $("controlnet-empty").hidden = server.controlnets.length > 0;
    for (const [name, { limit }] of Object.entries(FIELDS)) if (limit && server.limits[limit]) $(name).max = server.limits[limit];
    const steps = document.querySelector('[data-for="num_inference_steps"]');
    if (server.limits.max_steps) steps.max = Math.min(steps.max, server.limits.max_steps);
    if (server.limits.max_body) limitFiles(server.limits.max_body / 5);
    this.modelChanged();
  }

  get model() {
    return this.server?.models.find((each) => each.name === $("model").value) ?? this.server?.models[0] ?? {};
  }

  modelChanged() {
    const { width, height, num_inference_steps: steps, guidance_scale: guidance, strength } = this.model;
    const hints = { width, height, num_inference_steps: steps, guidance_scale: guidance, num_images_per_prompt: 1, strength: this.mask ? 1 : strength, mask_blur: 0 };
    for (const [name, value] of Object.entries(hints)) $(name).placeholder = value ?? "default";
    for (const range of document.querySelectorAll("input[data-for]")) this.slide(range);
    this.offerSchedules();
  }

  offerSchedules() {
    if (!this.server) return;
    this.fillSchedule($("schedule").value);
  }

  fillSampler(chosen) {
    const { schedulers = [], schedulerLabels = {} } = this.server ?? {};
    fill($("scheduler"), ["", ...schedulers], chosen, { ...schedulerLabels, ...DEFAULT_SAMPLER });
  }

  fillSchedule(chosen) {
    const allowed = this.server?.schedulesOf($("scheduler").value, this.model) ?? [];
    fill($("schedule"), ["", ...allowed], chosen, { "": "Default" });
  }

  slide(range) {
    const field = $(range.dataset.for);
    range.value = field.value || Number(field.placeholder) || (Number(range.min) + Number(range.max)) / 2;
  }

  imageChanged(image) {
    $("image-settings").hidden = !image;
    if (this.mask) this.setMask(null); // it was drawn for another image
    else this.showMask();
    this.clearError($("image-input"));
    this.changed();
  }

  async drawMask() {
    this.clearError($("mask-field"));
    const image = this.image.value;
    try {
      const mask = await this.editor.open(this.image.url, image, this.mask);
      if (mask !== undefined && this.image.value === image) this.setMask(mask);
    } catch (error) {
      this.showError($("mask-field"), error.message);
    }
    $("mask-draw").focus();
  }

  async loadMask() {
    const [file] = $("mask-file").files;
    $("mask-file").value = "";
    if (!file) return;
    try {
      const { width, height } = this.image.value;
      (await createImageBitmap(file)).close();
      await marked(file, width, height);
      this.setMask(file);
    } catch {
      this.showError($("mask-field"), `${file.name} cannot be read as an image.`);
    }
  }

  setMask(mask) {
    this.mask = mask;
    this.clearError($("mask-field"));
    this.showMask();
    this.changed();
  }

  /** Draw the mask over the small image. */
  async showMask() {
    const { mask } = this;
    $("mask-remove").hidden = $("mask-settings").hidden = !mask;
    for (const range of document.querySelectorAll('[data-for="strength"]')) {
      $("strength").placeholder = (mask ? 1 : this.model.strength) ?? "default";
      this.slide(range);
    }
    $("mask-draw").textContent = mask ? "Edit the mask" : "Draw a mask";
    const picture = document.querySelector("#image-input .chosen-picture");
    if (!picture) return;
    const overlay = mask && (await marked(mask, 160, Math.max(1, Math.round((160 * this.image.value.height) / this.image.value.width))));
    if (mask !== this.mask) return;
    picture.querySelector("canvas")?.remove();
    if (overlay) {
      overlay.className = "mask-overlay";
      picture.append(overlay);
    }
  }

  /** Show in the head of each section what it holds. */
  notes() {
    const { value } = this.image;
    $("image-note").textContent = value ? (this.mask ? "image and mask" : "image") : "none";
    for (const [id, rows] of [["lora-note", this.loras], ["controlnet-note", this.controlnets]]) {
      $(id).textContent = rows.rows.length ? rows.rows.map((row) => row.select.value).join(", ") : "none";
    }
    $("one-seed-row").hidden = !(Number($("num_images_per_prompt").value) > 1 || $("one_seed").checked);
    $("more-note").textContent = $("more").value.trim() ? "in use" : "none";
    for (const id of ["image-note", "lora-note", "controlnet-note", "more-note"]) $(id).classList.toggle("active", $(id).textContent !== "none");
  }

  /** Everything that the form holds, to be applied again later. */
  state() {
    const values = {};
    for (const name of Object.keys(FIELDS)) values[name] = $(name).type === "checkbox" ? $(name).checked : $(name).value;
    return { values, image: this.image.value, mask: this.mask, loras: this.loras.value, controlnets: this.controlnets.value };
  }

  /** Set the form to a state; what the state leaves out becomes empty. */
  apply({ values = {}, image = null, mask = null, loras = [], controlnets = [] }) {
    this.clearErrors();
    for (const name of Object.keys(FIELDS)) {
      const field = $(name);
      const value = values[name];
      if (field.type === "checkbox") field.checked = value === true;
      else if (name === "model") fill(field, this.server?.models.map((each) => each.name) ?? [], value || this.model.name);
      else if (name === "scheduler") this.fillSampler(value ?? "");
      else if (name !== "schedule") field.value = value ?? (name === "resize_mode" ? "stretch" : "");
    }
    this.fillSchedule(values.schedule ?? "");
    this.modelChanged();
    this.mask = null;
    this.image.set(image);
    if (image) this.setMask(mask);
    this.loras.set(loras);
    this.controlnets.set(controlnets);
    if (image) $("image-section").open = true;
    if (loras.length) $("lora-section").open = true;
    if (controlnets.length) $("controlnet-section").open = true;
    if (values.more) $("more-section").open = true;
    this.changed();
  }

  /** The request as JSON text, or null after showing what is wrong. */
  async body() {
    this.clearErrors();
    const found = { previews: true, prompt: $("prompt").value };
    for (const [name, field] of Object.entries(FIELDS)) {
      const active = !field.of || (field.of === "image" ? this.image.value : this.image.value && this.mask);
      if (active && !["prompt", "seed", "one_seed", "more"].includes(name)) this.readField(name, field, found);
    }
    const seed = this.readSeed(found.num_images_per_prompt ?? 1);
    this.checkSize(found);
    this.checkNeeds();
    this.readMore(found);
    const controlnets = this.readControlNets();
    const loras = this.readLoras();
    const first = document.querySelector('#form [aria-invalid="true"], #form .invalid');
    if (first) {
      reveal(first);
      return null;
    }
    if (this.image.value) found.image = await dataUrl(this.image.value.blob);
    if (this.image.value && this.mask) found.mask_image = await dataUrl(this.mask);
    if (loras.length) found.loras = loras.map(({ name, scale }) => ({ name, scale: scale ?? 1 }));
    if (controlnets.length) {
      found.controlnets = await Promise.all(controlnets.map(async ({ name, image, scale, start, end }) => (
        { name, image: await dataUrl(image.blob), scale: scale ?? 1, start: start ?? 0, end: end ?? 1 })));
    }
    const text = JSON.stringify(found);
    // seeds may be larger than numbers here are exact
    return seed === null ? text : `${text.slice(0, -1)},"seed":${seed}}`;
  }

  readField(name, { label, integer, min, max, multiple, limit }, found) {
    const field = $(name);
    if (field.type === "checkbox") {
      if (field.checked) found[name] = true;
      return;
    }
    if (label === undefined) {
      if (field.value !== "" && !(name === "resize_mode" && field.value === "stretch")) found[name] = field.value;
      return;
    }
    const value = number(field);
    if (value === null) return;
    const most = (limit && this.server?.limits[limit]) || max;
    const kind = integer ? "a whole number" : "a number";
    const range = most === undefined ? `of ${min} or more` : `from ${min} to ${most}`;
    if (Number.isNaN(value) || (integer && !Number.isInteger(value)) || value < min || value > (most ?? Infinity)) this.showError(field, `Enter ${kind} ${range}.`);
    else if (multiple && value % multiple) this.showError(field, `Enter a multiple of ${multiple}, such as ${Math.max(multiple, Math.round(value / multiple) * multiple)}.`);
    else found[name] = value;
  }

  /** The seed as JSON: a list with one for each image, or one that all images are drawn from. */
  readSeed(count) {
    const text = $("seed").value.trim();
    if (text === "" || text === "-1") return null;
    if (/^\d{1,20}$/.test(text) && BigInt(text) <= LARGEST_SEED) {
      const first = BigInt(text);
      if (count === 1 || $("one_seed").checked) return first.toString();
      const end = first < 2n ** 32n ? 2n ** 32n : LARGEST_SEED + 1n;
      return `[${Array.from({ length: count }, (_, index) => (first + BigInt(index)) % end).join()}]`;
    }
    this.showError($("seed"), "Enter a whole number of 0 or more, or leave it empty for a random one.");
    return null;
  }

  checkSize(found) {
    const most = this.server?.limits.max_pixels;
    const width = found.width ?? this.model.width;
    const height = found.height ?? this.model.height;
    if (most && width * height > most && (found.width || found.height)) {
      const side = Math.floor(Math.sqrt(most) / 8) * 8;
      this.showError($("width"), `${width} × ${height} is more than this server allows: at most ${side} × ${side}, or as many pixels.`);
    }
  }

  checkNeeds() {
    if (this.model.needs_image && !this.image.value) this.showError($("image-input"), "This model starts from an image. Choose one.");
    else if (this.model.needs_mask && !this.mask) this.showError($("mask-field"), "This model needs a mask. Draw one.");
  }

  readMore(found) {
    const text = $("more").value.trim();
    if (!text) return;
    let more;
    try {
      more = JSON.parse(text);
    } catch (error) {
      this.showError($("more"), `This is not JSON: ${error.message}`);
      return;
    }
    if (typeof more !== "object" || more === null || Array.isArray(more)) {
      this.showError($("more"), 'Enter a JSON object, such as {"clip_skip": 1}.');
      return;
    }
    const twice = Object.keys(more).find((name) => ARGUMENTS.includes(name));
    if (twice) this.showError($("more"), `${twice} has a field of its own; set it there.`);
    else Object.assign(found, more);
  }

  readLoras() {
    const { value, rows } = this.loras;
    value.forEach(({ scale }, index) => this.checkNumber(rows[index].inputs.scale, scale, -100, 100, $("loras"), "Scale"));
    return value;
  }

  readControlNets() {
    const { value, rows } = this.controlnets;
    value.forEach(({ image, scale, start, end }, index) => {
      const { inputs } = rows[index];
      const at = $("controlnets");
      this.checkNumber(inputs.scale, scale, -100, 100, at, "Scale");
      this.checkNumber(inputs.start, start, 0, 1, at, "Start");
      this.checkNumber(inputs.end, end, 0, 1, at, "End");
      if ((start ?? 0) > (end ?? 1)) this.showError(at, "Start comes after end.");
      if (!image) this.showError(at, `Choose the control image of ${rows[index].select.value}.`);
    });
    return value;
  }

  checkNumber(input, value, least, most, place, label) {
    if (value !== null && (Number.isNaN(value) || value < least || value > most)) {
      input.setAttribute("aria-invalid", "true");
      this.showError(place, `${label}: enter a number from ${least} to ${most}.`);
    }
  }

  /** Show an error of the server next to the field that it names.
   *  @returns whether there is such a field */
  showServerError({ message }) {
    const more = Object.keys(safeObject($("more").value)).find((name) => message.includes(name));
    const name = more ? "more" : SHOWN_AT.find(([pattern]) => pattern.test(message))?.[1];
    const field = name && $(ELEMENTS[name] ?? name);
    if (!field || (name === "mask_image" && !this.image.value)) return false;
    this.showError(field, message);
    reveal(field);
    return true;
  }

  showError(field, message) {
    const wrapper = field.closest(".field") ?? field;
    const id = `${field.id || "field"}-error`;
    let error = $(id);
    if (!error) {
      error = make("p", { class: "error", id });
      wrapper.append(error);
    }
    error.textContent = message;
    if (field.matches("input, textarea, select")) {
      field.setAttribute("aria-invalid", "true");
      field.setAttribute("aria-describedby", id);
    } else field.classList.add("invalid");
  }

  clearError(field) {
    const holder = field.closest(".field");
    if (!holder) return;
    for (const error of holder.querySelectorAll(":scope > .error")) error.remove();
    for (const each of [holder, ...holder.querySelectorAll("[aria-invalid], .invalid")]) {
      each.removeAttribute("aria-invalid");
      each.removeAttribute("aria-describedby");
      each.classList.remove("invalid");
    }
  }

  clearErrors() {
    for (const field of document.querySelectorAll("#form .field")) this.clearError(field);
  }
}

function safeObject(text) {
  try {
    return Object(JSON.parse(text || "{}"));
  } catch {
    return {};
  }
}

/** Scroll to a field, in a section that is opened, and focus it. */
function reveal(field) {
  const section = field.closest("details");
  if (section) section.open = true;
  const control = field.matches("input, textarea, select") ? field : field.querySelector('[aria-invalid="true"], button, input');
  control?.focus({ preventScroll: true });
  (field.closest(".field") ?? field).scrollIntoView({ block: "nearest", behavior: "smooth" });
}
