// Errors next to the fields that they are about.

import { $, announce, make } from "./dom.js";
import { ARGUMENTS } from "./fields.js";

/** What the server's messages say -> the argument. Names that are words of English count only
 *  where a message begins with them. */
const SAID = [
  ...ARGUMENTS.map((name) => [new RegExp(`${name.includes("_") ? "\\b" : "^"}${name}\\b`), name]),
  [/^\d+ images\b/, "num_images_per_prompt"],
  [/^(got )?\d+ seeds\b/, "seed"],
  [/^\d+x\d+\b.* pixels/, "width"],
  [/\b(sampler|scheduler)\b/, "scheduler"],
  [/\bschedule\b/, "schedule"],
  [/\bLoRAs?\b/, "loras"],
  [/\bControlNets?\b|\bcontrol image/, "controlnets"],
  [/^(an |the )?input image/, "image"],
  [/^(a |the )?mask\b/, "mask_image"],
];
/** Arguments whose element has another name. */
const ELEMENTS = { image: "image-input", mask_image: "mask-field" };
const CONTROLS = "input, textarea, select";

/** Show an error next to a field: an input, or an element that holds several. */
export function showError(field, message) {
  const id = `${field.id || "field"}-error`;
  let error = $(id);
  if (!error) {
    error = make("p", { class: "error", id });
    (field.closest(".field") ?? field).append(error);
  }
  error.textContent = message;
  if (field.matches(CONTROLS)) {
    field.setAttribute("aria-invalid", "true");
    field.setAttribute("aria-describedby", id);
  } else {
    field.classList.add("invalid");
    announce(message);
  }
}

/** Show an error of the server next to the field that it names.
 *  @param more the arguments that the form sends from its field for others
 *  @returns whether there is such a field */
export function showServerError({ message }, more) {
  const other = Object.keys(more).some((name) => message.includes(name));
  const name = other ? "more" : SAID.find(([pattern]) => pattern.test(message))?.[1];
  const field = name && $(ELEMENTS[name] ?? name);
  if (!field || field.closest("[hidden]")) return false;
  showError(field, message);
  reveal(field);
  return true;
}

/** Remove the error of the field that an element belongs to. */
export function clearError(element) {
  const holder = element.closest(".field");
  if (!holder) return;
  for (const error of holder.querySelectorAll(":scope > .error")) error.remove();
  for (const each of [holder, ...holder.querySelectorAll("[aria-invalid], .invalid")]) {
    each.removeAttribute("aria-invalid");
    each.removeAttribute("aria-describedby");
    each.classList.remove("invalid");
  }
}

export function clearErrors() {
  for (const field of document.querySelectorAll("#form .field")) clearError(field);
}

/** Go to the first field with an error.
 *  @returns whether there is one */
export function revealFirstError() {
  const first = document.querySelector('#form [aria-invalid="true"], #form .invalid');
  if (first) reveal(first);
  return first !== null;
}

/** Scroll to a field, in a section that is opened, and focus it. */
function reveal(field) {
  const section = field.closest("details");
  if (section) section.open = true;
  const inner = () => field.querySelector('[aria-invalid="true"], button, input');
  const control = field.matches(CONTROLS) ? field : inner();
  control?.focus({ preventScroll: true });
  const shown = field.closest(".field") ?? field;
  shown.scrollIntoView({ block: "nearest", behavior: "smooth" });
}
