// The dialog in which a mask is drawn: with mouse, pen or finger, or with the keyboard.

import { $, make } from "./dom.js";
import { boundedCanvas, toBlob } from "./image_field.js";

const COLOR = "#ff3d6e";
const LONGEST_SIDE = 2048;
const KEYBOARD_STEPS = 32;
const MAIN_BUTTON = 0;
const ERASER = 5; // of a pen

const within = (share) => Math.min(1, Math.max(0, share));

export class MaskEditor {
  constructor() {
    this.dialog = $("mask-dialog");
    this.canvas = $("mask-canvas");
    this.context = this.canvas.getContext("2d", { willReadFrequently: true });
    this.cursor = $("mask-cursor");
    this.wire();
  }

  /** Draw a mask over an image.
   *  @param url of the image; its `size` is {width, height}
   *  @param mask blob to go on with, or null
   *  @returns a PNG that is white where new content is generated, null for an empty mask, or
   *    undefined if the dialog was left. */
  async open(url, size, mask) {
    const { width, height } = boundedCanvas(size.width, size.height, LONGEST_SIDE);
    Object.assign(this.canvas, { width, height });
    $("mask-frame").style.setProperty("--ratio", `${width} / ${height}`);
    $("mask-frame").style.setProperty("--ratio-number", width / height);
    $("mask-image").src = url;
    const picture = mask && (await marked(mask, width, height));
    this.strokes = picture ? [{ kind: "picture", picture }] : [];
    Object.assign(this, { undone: [], stroke: null, pointer: null });
    Object.assign(this, { place: { x: 0.5, y: 0.5 }, down: false });
    this.choose(false);
    this.redraw();
    return new Promise((resolve) => {
      this.finish = resolve;
      this.dialog.showModal();
      this.canvas.focus();
    });
  }

  wire() {
    const { canvas } = this;
    canvas.addEventListener("pointerdown", (event) => {
      // while a pen draws, the hand that rests on the screen does not
      if (!event.isPrimary || this.pointer !== null) return;
      if (event.button !== MAIN_BUTTON && event.button !== ERASER) return;
      event.preventDefault();
      canvas.focus();
      canvas.setPointerCapture(event.pointerId);
      this.down = false;
      this.begin(this.position(event), this.erase || event.button === ERASER);
      this.pointer = event.pointerId;
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!this.stroke && !event.movementX && !event.movementY) return; // the page moved, not the pointer
      if (this.down) return; // the keyboard draws
      if (this.stroke && event.pointerId !== this.pointer) return;
      this.place = this.position(event);
      this.showCursor();
      if (!this.stroke) return;
      const passed = event.getCoalescedEvents?.() ?? [];
      for (const each of passed.length ? passed : [event]) this.extend(this.position(each));
    });
    for (const kind of ["pointerup", "pointercancel", "lostpointercapture"]) {
      canvas.addEventListener(kind, (event) => { if (event.pointerId === this.pointer) this.end(); });
    }
    canvas.addEventListener("pointerleave", () => {
      this.cursor.hidden = document.activeElement !== canvas;
    });
    canvas.addEventListener("blur", () => {
      this.down = false;
      this.end();
      this.cursor.hidden = true;
    });
    canvas.addEventListener("focus", () => this.showCursor());
    this.dialog.addEventListener("keydown", (event) => this.key(event));
    $("tool-brush").onclick = () => this.choose(false);
    $("tool-eraser").onclick = () => this.choose(true);
    $("brush-size").oninput = () => this.showCursor();
    $("mask-undo").onclick = () => this.undo();
    $("mask-redo").onclick = () => this.redo();
    $("mask-invert").onclick = () => this.add({ kind: "invert" });
    $("mask-clear").onclick = () => this.add({ kind: "clear" });
    $("mask-cancel").onclick = () => this.dialog.close();
    $("mask-done").onclick = () => this.done();
    this.dialog.addEventListener("close", () => { this.finish?.(undefined); this.finish = null; });
  }

  position(event) {
    const box = this.canvas.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width;
    return { x: within(x), y: within((event.clientY - box.top) / box.height) };
  }

  /** Width of the brush in pixels of the canvas. */
  get brush() {
    return (Math.max(this.canvas.width, this.canvas.height) * Number($("brush-size").value)) / 100;
  }

  choose(erase) {
    this.erase = erase;
    $("tool-brush").setAttribute("aria-pressed", String(!erase));
    $("tool-eraser").setAttribute("aria-pressed", String(erase));
  }

  begin(place, erase = this.erase) {
    this.end();
    this.stroke = { kind: "stroke", erase, size: this.brush, points: [place] };
    this.segment(this.stroke, 0);
  }

  extend(place) {
    this.stroke.points.push(place);
    this.segment(this.stroke, this.stroke.points.length - 1);
  }

  end() {
    this.pointer = null;
    if (!this.stroke) return;
    this.strokes.push(this.stroke);
    Object.assign(this, { stroke: null, undone: [] });
    this.update();
  }

  add(stroke) {
    this.end();
    this.strokes.push(stroke);
    this.undone = [];
    this.apply(stroke);
    this.update();
    this.say(stroke.kind === "clear" ? "Mask cleared" : "Mask inverted");
  }

  undo() {
    this.down = false;
    this.end();
    const last = this.strokes.pop();
    if (!last) return;
    this.undone.push(last);
    this.redraw();
    this.say("Undone");
  }

  redo() {
    const next = this.undone.pop();
    if (!next) return;
    this.strokes.push(next);
    this.redraw();
    this.say("Redone");
  }

  redraw() {
    this.context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    for (const stroke of this.strokes) this.apply(stroke);
    this.update();
  }

  update() {
    $("mask-undo").disabled = !this.strokes.length;
    $("mask-redo").disabled = !this.undone.length;
  }

  apply(stroke) {
    const { context, canvas } = this;
    if (stroke.kind === "clear") context.clearRect(0, 0, canvas.width, canvas.height);
    else if (stroke.kind === "picture") context.drawImage(stroke.picture, 0, 0);
    else if (stroke.kind === "invert") {
      context.globalCompositeOperation = "xor";
      context.fillStyle = COLOR;
      context.fillRect(0, 0, canvas.width, canvas.height);
      context.globalCompositeOperation = "source-over";
    } else stroke.points.forEach((_, index) => this.segment(stroke, index));
  }

  /** Draw from one point of a stroke to the next. */
  segment(stroke, index) {
    const { context, canvas } = this;
    const to = stroke.points[index];
    const from = stroke.points[Math.max(0, index - 1)];
    context.globalCompositeOperation = stroke.erase ? "destination-out" : "source-over";
    const round = { lineCap: "round", lineJoin: "round" };
    Object.assign(context, { strokeStyle: COLOR, lineWidth: stroke.size, ...round });
    context.beginPath();
    if (index === 0) { // a dot, as a tap leaves it
      context.fillStyle = COLOR;
      context.arc(to.x * canvas.width, to.y * canvas.height, stroke.size / 2, 0, 2 * Math.PI);
      context.fill();
      context.beginPath();
    }
    context.moveTo(from.x * canvas.width, from.y * canvas.height);
    context.lineTo(to.x * canvas.width, to.y * canvas.height);
    context.stroke();
    context.globalCompositeOperation = "source-over";
  }

  key(event) {
    const control = event.ctrlKey || event.metaKey;
    if (control && event.key.toLowerCase() === "z") {
      event.preventDefault();
      if (event.shiftKey) this.redo();
      else this.undo();
      return;
    }
    if (control || event.target !== this.canvas) return;
    const step = event.shiftKey ? 1 / (4 * KEYBOARD_STEPS) : 1 / KEYBOARD_STEPS;
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    if (moves[event.key]) this.move(...moves[event.key]);
    else if (event.key === " ") this.toggle();
    else if (event.key === "[" || event.key === "]") this.resize(event.key === "]" ? 2 : -2);
    else if (event.key.toLowerCase() === "e") {
      this.choose(!this.erase);
      this.say(this.erase ? "Eraser" : "Brush");
    } else return;
    event.preventDefault();
  }

  move(x, y) {
    this.place = { x: within(this.place.x + x), y: within(this.place.y + y) };
    if (this.down) this.extend(this.place);
    this.showCursor();
    const percent = (share) => `${Math.round(100 * share)} %`;
    this.say(`${percent(this.place.x)} from the left, ${percent(this.place.y)} from the top`);
  }

  toggle() {
    this.down = !this.down;
    if (this.down) this.begin(this.place);
    else this.end();
    this.showCursor();
    this.say(this.down ? "Brush down" : "Brush up");
  }

  resize(change) {
    const slider = $("brush-size");
    slider.value = Number(slider.value) + change;
    this.showCursor();
    this.say(`Size ${slider.value}`);
  }

  showCursor() {
    const { cursor, canvas, place } = this;
    const shown = canvas.clientWidth / canvas.width;
    cursor.hidden = false;
    cursor.classList.toggle("down", this.down);
    cursor.style.left = `${100 * place.x}%`;
    cursor.style.top = `${100 * place.y}%`;
    cursor.style.width = cursor.style.height = `${this.brush * shown}px`;
  }

  say(text) {
    $("mask-live").textContent = text;
  }

  async done() {
    this.down = false;
    this.end();
    const mask = await this.mask();
    const { finish } = this;
    this.finish = null;
    this.dialog.close();
    finish?.(mask);
  }

  /** The mask in black and white, or null if nothing is marked. */
  async mask() {
    const { width, height } = this.canvas;
    const pixels = this.context.getImageData(0, 0, width, height);
    let any = false;
    for (let at = 0; at < pixels.data.length; at += 4) {
      const white = pixels.data[at + 3] >= 128 ? 255 : 0;
      any ||= white > 0;
      pixels.data.fill(white, at, at + 3);
      pixels.data[at + 3] = 255;
    }
    if (!any) return null;
    const canvas = make("canvas", { width, height });
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    return toBlob(canvas, "image/png");
  }
}

/** The bright part of a mask in the editor's color, on a canvas of a size. */
export async function marked(mask, width, height) {
  const bitmap = await createImageBitmap(mask);
  const canvas = make("canvas", { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  const pixels = context.getImageData(0, 0, width, height);
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(COLOR.slice(at, at + 2), 16));
  for (let at = 0; at < pixels.data.length; at += 4) {
    const bright = 0.299 * pixels.data[at] + 0.587 * pixels.data[at + 1] + 0.114 * pixels.data[at + 2];
    const alpha = bright * pixels.data[at + 3] >= 128 * 255 ? 255 : 0;
    pixels.data.set([red, green, blue, alpha], at);
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}
