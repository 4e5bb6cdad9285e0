// Rows of LoRAs and ControlNets, each chosen by a name that the server has.

import { $, button, icon, ICONS, make } from "./dom.js";
import { ImageField } from "./image_field.js";

const SCALE = { label: "Scale", min: -100, max: 100, value: 1 };
const SHARE = { min: 0, max: 1 };

let count = 0;

class Rows {
  constructor(kind, changed) {
    Object.assign(this, { list: $(`${kind}s`), button: $(`${kind}-add`), changed });
    Object.assign(this, { rows: [], names: [] });
    this.button.onclick = () => {
      const used = this.rows.map((row) => row.select.value);
      const row = this.add({ name: this.names.find((name) => !used.includes(name)) ?? this.names[0] });
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

  set(entries) {
    this.rows = [];
    this.list.replaceChildren();
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

  /** A row with a name and numbers: its parts, which `append` puts together. */
  parts(what, numbers, values) {
    const id = `${what}-${++count}`.toLowerCase();
    const select = make("select", { id: `${id}-name`, onchange: () => this.changed() });
    fill(select, this.names, values.name);
    const row = { select, inputs: {} };
    const name = make("div", { class: "adapter-name" }, make("label", { htmlFor: select.id }, what), select);
    const fields = Object.entries(numbers).map(([key, { label, value, ...limits }]) => {
      const shared = { type: "number", id: `${id}-${key}`, inputmode: "decimal", step: "0.05" };
      const input = make("input", { ...shared, ...limits, placeholder: value, value: values[key] ?? value });
      row.inputs[key] = input;
      return make("div", {}, make("label", { htmlFor: input.id }, label), input);
    });
    const named = { class: "quiet icon", "aria-label": `Remove this ${what}` };
    const remove = button(icon(ICONS.remove), () => this.remove(row), named);
    // an empty field stands for what it shows
    const read = ([key, input]) => [key, number(input) ?? Number(input.placeholder)];
    row.numbers = () => Object.fromEntries(Object.entries(row.inputs).map(read));
    return { row, name, fields, remove };
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
    const { row, name, fields, remove } = this.parts("LoRA", { scale: SCALE }, values);
    row.read = () => ({ name: row.select.value, ...row.numbers() });
    return this.append(row, make("div", { class: "adapter-line" }, name, ...fields, remove));
  }
}

export class ControlNets extends Rows {
  constructor(changed) {
    super("controlnet", changed);
  }

  add(values) {
    const start = { label: "Start", ...SHARE, value: 0 };
    const end = { label: "End", ...SHARE, value: 1 };
    const numbers = { scale: SCALE, start, end };
    const { row, name, fields, remove } = this.parts("ControlNet", numbers, values);
    row.image = new ImageField(make("div"), "Control image", () => this.changed());
    row.read = () => ({ name: row.select.value, image: row.image.value, ...row.numbers() });
    const head = make("div", { class: "adapter-line" }, name, remove);
    this.append(row, head, row.image.host, make("div", { class: "thirds" }, ...fields));
    if (values.image) row.image.set(values.image);
    return row;
  }
}

/** The options of a select element; a chosen name that is missing stays, and says so. */
export function fill(select, names, chosen, labels = {}) {
  const missing = chosen && !names.includes(chosen);
  select.replaceChildren(...names.map((name) => make("option", { value: name }, labels[name] ?? name)));
  if (missing) select.append(make("option", { value: chosen }, `${chosen} (not on this server)`));
  if (chosen !== undefined && chosen !== null) select.value = chosen;
}

/** A number, null for an empty field, NaN for what is none. */
export function number(input) {
  if (input.validity.badInput) return NaN;
  return input.value === "" ? null : Number(input.value);
}
