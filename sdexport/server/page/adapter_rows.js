// Rows of LoRAs and ControlNets, each chosen by a name that the server has.

import { $, make, icon, ICONS } from "./dom.js";
import { ImageField } from "./image_field.js";

let count = 0;

class Rows {
  constructor(kind, changed) {
    Object.assign(this, { list: $(`${kind}s`), button: $(`${kind}-add`), changed, rows: [], names: [] });
    this.button.onclick = () => {
      const row = this.add({ name: this.names.find((name) => !this.rows.some((each) => each.select.value === name)) ?? this.names[0] });
      row.select.focus();
      this.changed();
    };
  }

  /** The names that can be chosen. */
  offer(names) {
    this.names = names;
    this.button.hidden = !names.length;
    for (const row of this.rows) fill(row.select, names, row.select.value);
  }

  clear() {
    this.rows = [];
    this.list.replaceChildren();
  }

  set(entries) {
    this.clear();
    for (const entry of entries) this.add(entry);
    this.changed();
  }

  remove(row) {
    this.rows = this.rows.filter((each) => each !== row);
    row.element.remove();
    this.button.focus();
    this.changed();
  }

  get value() {
    return this.rows.map((row) => row.read());
  }

  /** A row with a name and numbers; `values` by name. */
  basic(what, numbers, values) {
    const id = `${what}-${++count}`.toLowerCase();
    const select = make("select", { id: `${id}-name` });
    fill(select, this.names, values.name);
    const row = { select, inputs: {} };
    const named = make("div", { class: "adapter-name" }, make("label", { htmlFor: select.id }, what), select);
    const labelled = Object.entries(numbers).map(([name, { label, ...limits }]) => {
      const value = values[name] ?? limits.value;
      const input = make("input", { type: "number", id: `${id}-${name}`, inputmode: "decimal", step: "0.05", ...limits, value });
      row.inputs[name] = input;
      return make("div", {}, make("label", { htmlFor: input.id }, label), input);
    });
    const remove = make("button", { type: "button", class: "quiet icon", "aria-label": `Remove this ${what}`, onclick: () => this.remove(row) }, icon(ICONS.remove));
    select.addEventListener("change", () => this.changed());
    row.numbers = () => Object.fromEntries(Object.entries(row.inputs).map(([name, input]) => [name, number(input)]));
    return { row, named, labelled, remove };
  }

  append(row, ...children) {
    row.element = make("div", { class: "adapter" }, ...children);
    this.rows.push(row);
    this.list.append(row.element);
    return row;
  }
}

export class Loras extends Rows {
  constructor(changed) {
    super("lora", changed);
  }

  add(values) {
    const { row, named, labelled, remove } = this.basic("LoRA", { scale: { label: "Scale", min: -100, max: 100, value: 1 } }, values);
    row.read = () => ({ name: row.select.value, ...row.numbers() });
    return this.append(row, make("div", { class: "adapter-line" }, named, ...labelled, remove));
  }
}

export class ControlNets extends Rows {
  constructor(changed) {
    super("controlnet", changed);
  }

  add(values) {
    const numbers = {
      scale: { label: "Scale", min: -100, max: 100, value: 1 },
      start: { label: "Start", min: 0, max: 1, value: 0 },
      end: { label: "End", min: 0, max: 1, value: 1 },
    };
    const { row, named, labelled, remove } = this.basic("ControlNet", numbers, values);
    row.image = new ImageField(make("div"), "Control image", () => this.changed());
    row.read = () => ({ name: row.select.value, image: row.image.value, ...row.numbers() });
    this.append(row, make("div", { class: "adapter-line" }, named, remove), row.image.host, make("div", { class: "thirds" }, ...labelled));
    if (values.image) row.image.set(values.image);
    return row;
  }
}

/** The options of a select element; a chosen name that is missing stays, and says so. */
export function fill(select, names, chosen, labels = {}) {
  const missing = chosen && !names.includes(chosen);
  select.replaceChildren(...names.map((name) => make("option", { value: name }, labels[name] ?? name)));
  if (missing) select.append(make("option", { value: chosen, data: { missing: "" } }, `${chosen} (not on this server)`));
  if (chosen !== undefined && chosen !== null) select.value = chosen;
}

/** A number, null for an empty field, NaN for what is none. */
export function number(input) {
  if (input.validity.badInput) return NaN;
  return input.value === "" ? null : Number(input.value);
}
