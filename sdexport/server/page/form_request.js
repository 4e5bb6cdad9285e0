// From the form to the request for images, with checks before anything is sent.

import { number } from "./adapter_rows.js";
import { $ } from "./dom.js";
import { clearErrors, revealFirstError, showError } from "./field_errors.js";
import { ARGUMENTS, COMPOSED, FIELDS } from "./fields.js";
import { dataUrl } from "./image_field.js";

const LARGEST_SEED = 2n ** 64n - 2n; // the next one is -1, a random one

/** The request as JSON text, or null after showing what is wrong. */
export async function requestOf(form) {
  clearErrors();
  const found = { previews: true, prompt: $("prompt").value };
  const used = { image: form.image.value, mask: form.image.value && form.mask.value };
  for (const [name, field] of Object.entries(FIELDS)) {
    const sent = !COMPOSED.includes(name) && (!field.of || used[field.of]);
    if (sent) readField(form, name, field, found);
  }
  const seed = readSeed(found.num_images_per_prompt ?? 1);
  checkSize(form, found);
  checkNeeds(form.model, used);
  readMore(found);
  checkAdapters(form);
  if (revealFirstError()) return null;
  await addImages(form, used, found);
  const text = JSON.stringify(found);
  // seeds may be larger than numbers here are exact
  return seed === null ? text : `${text.slice(0, -1)},"seed":${seed}}`;
}

/** The arguments in the field for others, as far as they can be read. */
export function moreArguments() {
  try {
    return Object(JSON.parse($("more").value || "{}"));
  } catch {
    return {};
  }
}

function readField(form, name, { label, integer, min, max, multiple, limit }, found) {
  const field = $(name);
  if (field.type === "checkbox") {
    if (field.checked) found[name] = true;
    return;
  }
  if (label === undefined) {
    const usual = name === "resize_mode" ? "stretch" : "";
    if (field.value !== usual) found[name] = field.value;
    return;
  }
  const value = number(field);
  if (value === null) return;
  const most = (limit && form.server?.limits[limit]) || max;
  const inRange = value >= min && value <= (most ?? Infinity); // false for NaN
  if (!inRange || (integer && !Number.isInteger(value))) {
    const range = most === undefined ? `of ${min} or more` : `from ${min} to ${most}`;
    showError(field, `Enter a ${integer ? "whole number" : "number"} ${range}.`);
  } else if (multiple && value % form.unit) {
    const near = Math.max(1, Math.round(value / form.unit)) * form.unit;
    showError(field, `Enter a multiple of ${form.unit}, such as ${near}.`);
  } else found[name] = value;
}

/** The seed as JSON: a list with one for each image, or one from which all are drawn; null for a
 *  random one. */
function readSeed(count) {
  const text = $("seed").value.trim();
  if (text === "" || text === "-1") return null;
  if (!/^\d{1,20}$/.test(text) || BigInt(text) > LARGEST_SEED) {
    showError($("seed"), "Enter a whole number of 0 or more, or nothing for a random one.");
    return null;
  }
  const first = BigInt(text);
  if (count === 1 || $("one_seed").checked) return first.toString();
  const end = first < 2n ** 32n ? 2n ** 32n : LARGEST_SEED + 1n;
  const seeds = Array.from({ length: count }, (_, index) => (first + BigInt(index)) % end);
  return `[${seeds.join()}]`;
}

function checkSize(form, found) {
  const most = form.server?.limits.max_pixels;
  const { width, height } = { ...form.defaultSize, ...found };
  if (!most || !(width * height > most)) return;
  const side = Math.floor(Math.sqrt(most) / form.unit) * form.unit;
  const allowed = `at most ${side} × ${side}, or as many pixels`;
  showError($("width"), `${width} × ${height} is more than this server allows: ${allowed}.`);
}

function checkNeeds(model, { image, mask }) {
  if (model.needs_image && !image) {
    showError($("image-input"), "This model starts from an image. Choose one.");
  } else if (model.needs_mask && !mask) {
    showError($("mask-field"), "This model needs a mask. Draw one.");
  }
}

function readMore(found) {
  const text = $("more").value.trim();
  if (!text) return;
  let more;
  try {
    more = JSON.parse(text);
  } catch (error) {
    showError($("more"), `This is not JSON: ${error.message}`);
    return;
  }
  if (typeof more !== "object" || more === null || Array.isArray(more)) {
    showError($("more"), 'Enter a JSON object, such as {"clip_skip": 1}.');
    return;
  }
  const twice = Object.keys(more).find((name) => ARGUMENTS.includes(name));
  if (twice) showError($("more"), `${twice} has a field of its own; set it there.`);
  else Object.assign(found, more);
}

function checkAdapters({ loras, controlnets }) {
  for (const row of loras.rows) checkNumbers(row, $("loras"));
  for (const row of controlnets.rows) {
    const { name, image, start, end } = row.read();
    checkNumbers(row, $("controlnets"));
    if (start > end) showError($("controlnets"), "Start comes after end.");
    if (!image) showError($("controlnets"), `Choose the control image of ${name}.`);
  }
}

/** Check the numbers of a LoRA or ControlNet against the limits of their inputs. */
function checkNumbers(row, place) {
  for (const [name, input] of Object.entries(row.inputs)) {
    const value = row.read()[name];
    if (value >= Number(input.min) && value <= Number(input.max)) continue;
    input.setAttribute("aria-invalid", "true");
    showError(place, `${name}: enter a number from ${input.min} to ${input.max}.`);
  }
}

async function addImages({ image, mask, loras, controlnets }, used, found) {
  if (used.image) found.image = await dataUrl(image.value.blob);
  if (used.mask) found.mask_image = await dataUrl(mask.value);
  if (loras.value.length) found.loras = loras.value;
  const followed = controlnets.value.map(async (each) => (
    { ...each, image: await dataUrl(each.image.blob) }
  ));
  if (followed.length) found.controlnets = await Promise.all(followed);
}
