// The page: generates, shows, remembers.

import * as api from "./api.js";
import { $, announce, store, stored, toast } from "./dom.js";
import { showServerError } from "./field_errors.js";
import { Form } from "./form.js";
import { moreArguments, requestOf } from "./form_request.js";
import { HistoryList } from "./history_list.js";
import { prepared } from "./image_field.js";
import { JobRun } from "./job_run.js";
import { PendingJob } from "./pending_job.js";
import { modelName, restored } from "./restore.js";
import { describeServer } from "./server_info.js";
import { Stage } from "./stage.js";

const DRAFT = "sdexport.draft";

let running = null;
let lastSeed = null;

const form = new Form(() => saveDraft());
const stage = new Stage({
  useAsImage,
  restore: (entry) => restoreEntry(entry),
  modelName: (settings) => modelName(settings, serverNow()) || settings.model,
});
const history = new HistoryList((entry) => {
  if (!running) stage.finish([entry]);
  restoreEntry(entry);
});

const pending = new PendingJob(history.store);

// ---- generate -------------------------------------------------------------------------------

async function generate() {
  if (running) {
    announce("An image is being generated.");
    return;
  }
  hideProblem();
  const job = {};
  const accepted = (id) => pending.keep({ id, ...job });
  await follow(new JobRun({ accepted, queued, started, step }), async (run) => {
    job.state = form.state();
    const body = await requestOf(form);
    if (body === null) {
      announce("Check the fields that are marked.");
      return;
    }
    const { num_images_per_prompt: count = 1, ...sent } = JSON.parse(body);
    const { width, height } = { ...form.defaultSize, ...sent };
    Object.assign(job, { count: Math.min(count, 16), width, height });
    stage.start(job.count, width, height);
    announce("Generating.");
    await ended(await run.run(body), job.state);
  });
}

/** Take up the job that the page waited for before it was loaded anew. */
async function resume() {
  const job = await pending.find();
  if (!job || running) return;
  const { id, count = 1, width, height, state = { values: form.state().values } } = job;
  await follow(new JobRun({ queued, started, step }), async (run) => {
    stage.start(count, width, height);
    stage.progress("Connecting", null);
    announce("Generating.");
    await ended(await run.resume(id), state);
  });
}

/** Show a run until its end, which `work` waits for. */
async function follow(run, work) {
  setRunning(run);
  try {
    await work(run);
  } catch (error) {
    stage.clear();
    if (run.cancelled) cancelled();
    else failed(error);
  } finally {
    pending.forget();
    setRunning(null);
  }
}

async function ended(images, state) {
  if (images === null) {
    cancelled();
    return;
  }
  const entries = await Promise.all(images.map(async ({ png, parameters }) => {
    const { width, height } = await prepared(png);
    return { png, parameters, width, height, state };
  }));
  stage.finish(entries);
  offerSeed(entries[0]);
  announce(entries.length === 1 ? "The image is ready." : `${entries.length} images are ready.`);
  for (const entry of entries) await history.add(entry);
}

/** Offer the seed of an image to be used again. */
function offerSeed(entry) {
  lastSeed = entry?.parameters.seed ?? lastSeed;
  $("seed-reuse").disabled = lastSeed === null;
}

function cancelled() {
  stage.clear();
  toast("Cancelled.");
}

function failed(error) {
  if (!(error instanceof api.ServerError)) console.error(error);
  const shown = error instanceof api.ServerError && showServerError(error, moreArguments());
  if (!shown) showProblem(error.message);
}

async function cancel() {
  if (!running || running.cancelled) return;
  const run = running;
  stage.progress("Cancelling", null);
  announce("Cancelling.");
  $("cancel").disabled = true;
  try {
    await run.cancel();
  } catch (error) {
    run.cancelled = false;
    $("cancel").disabled = false;
    failed(error);
  }
}

function setRunning(run) {
  running = run;
  const hadFocus = [$("generate"), $("cancel"), document.body].includes(document.activeElement);
  $("generate").hidden = run !== null;
  $("cancel").hidden = run === null;
  $("cancel").disabled = false;
  document.body.classList.toggle("busy", run !== null);
  document.title = run ? "Generating – sdexport" : "sdexport";
  if (hadFocus) (run ? $("cancel") : $("generate")).focus();
}

function queued(position) {
  if (running?.cancelled) return;
  const place = position > 0 ? `${position} ahead in the queue` : "next in the queue";
  stage.progress(`Waiting: ${place}`, null);
  announce(`Waiting: ${place}.`);
}

function started() {
  if (!running?.cancelled) stage.progress("Starting", null);
}

function step({ step: at, steps, preview }, left) {
  if (running?.cancelled) return;
  if (preview) stage.showPreview(preview);
  const time = left === null ? "" : left < 1 ? "almost done" : `about ${duration(left)} left`;
  stage.progress(at >= steps ? "Finishing" : `Step ${at} of ${steps}`, at / steps, time);
  const quarter = Math.floor((4 * at) / steps);
  const isNew = quarter > Math.floor((4 * (at - 1)) / steps);
  if (isNew && quarter < 4) announce(`${25 * quarter} percent. ${time}`);
  document.title = `${Math.round((100 * at) / steps)} % – sdexport`;
}

function duration(seconds) {
  const whole = Math.ceil(seconds);
  return whole < 90 ? `${whole} s` : `${Math.round(whole / 60)} min`;
}

function showProblem(message) {
  if (!$("problem").hidden && $("problem").textContent === message) return;
  $("problem").textContent = message;
  $("problem").hidden = false;
  $("problem").scrollIntoView({ block: "nearest" });
}

function hideProblem() {
  $("problem").hidden = true;
  $("problem").textContent = "";
}

/** What the server offers, as far as that is known. */
function serverNow() {
  return form.server ?? describeServer({});
}

// ---- restore --------------------------------------------------------------------------------

/** Apply a state, and offer the way back. */
function applyState(state, message) {
  const before = form.state();
  form.apply(state);
  saveDraft();
  toast(message, { label: "Undo", run: () => form.apply(before) });
}

function restoreEntry(entry) {
  const values = { ...entry.state.values };
  const { seed, seeds } = entry.parameters;
  if (seed !== null && seed !== undefined) values.seed = String(seed);
  if (seeds) values.num_images_per_prompt = ""; // this image alone
  offerSeed(entry);
  applyState({ ...entry.state, values }, "Settings restored.");
}

/** Restore the settings that an image file carries. */
async function restoreFile(file) {
  hideProblem();
  try {
    const { settings, not_understood: notUnderstood } = await api.imageSettings(file);
    const { state, notes } = restored(settings, serverNow(), notUnderstood);
    applyState(state, `Settings of ${file.name} restored.`);
    if (notes.length) showProblem(`Not everything could be restored. ${notes.join(" ")}`);
  } catch (error) {
    showProblem(error.message.replace(/^image\b/, file.name));
  }
}

async function useAsImage(entry) {
  form.image.set(await prepared(entry.png, `seed-${entry.parameters.seed ?? "unknown"}.png`));
  $("image-section").open = true;
  $("image-section").scrollIntoView({ block: "nearest", behavior: "smooth" });
  $("mask-draw").focus({ preventScroll: true });
  announce("The image is now the initial image.");
}

// ---- what is kept between visits ------------------------------------------------------------

let draftTimer = 0;

const saveNow = () => store("localStorage", DRAFT, JSON.stringify(form.state().values));

function saveDraft() {
  clearTimeout(draftTimer);
  draftTimer = setTimeout(saveNow, 200);
}

function loadDraft() {
  try {
    const values = JSON.parse(stored("localStorage", DRAFT) ?? "{}");
    if (values && typeof values === "object") form.apply({ values });
  } catch {
    store("localStorage", DRAFT, null);
  }
}

// ---- wiring ---------------------------------------------------------------------------------

$("form").addEventListener("submit", (event) => { event.preventDefault(); generate(); });
$("cancel").onclick = cancel;
$("reset").onclick = () => {
  const { prompt, negative_prompt, model } = form.state().values;
  applyState({ values: { prompt, negative_prompt, model } }, "Settings reset.");
};
$("seed-reuse").onclick = () => form.setSeed(String(lastSeed));
$("open-image").onclick = () => $("settings-file").click();
$("settings-file").onchange = () => {
  const [file] = $("settings-file").files;
  $("settings-file").value = "";
  if (file) restoreFile(file);
};

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    generate();
  } else if (event.key === "Escape") cancel();
});

let depth = 0; // of the elements that a dragged file is over
const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
const isFree = () => !document.querySelector("dialog[open]");
const dragged = (change) => {
  depth = Math.max(0, depth + change);
  $("drop").hidden = depth === 0;
};
document.addEventListener("dragenter", (event) => {
  if (carriesFiles(event) && isFree()) dragged(1);
});
document.addEventListener("dragleave", (event) => {
  if (carriesFiles(event)) dragged(-1);
});
document.addEventListener("drop-handled", () => dragged(-depth));
document.addEventListener("dragover", (event) => {
  if (carriesFiles(event)) event.preventDefault();
});
document.addEventListener("drop", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  dragged(-depth);
  const [file] = event.dataTransfer.files;
  if (file && isFree()) restoreFile(file);
});

window.addEventListener("pagehide", saveNow);

function showTheme() {
  const chosen = document.documentElement.dataset.theme;
  const dark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  $("theme").setAttribute("aria-pressed", String(dark));
  return dark;
}
$("theme").onclick = () => {
  const theme = showTheme() ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  store("localStorage", "sdexport.theme", theme);
  showTheme();
};
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showTheme);
showTheme();

async function connect() {
  try {
    form.offer(describeServer(await api.serverInfo()));
    $("server-state").textContent = "";
    hideProblem();
  } catch (error) {
    $("server-state").textContent = "Not connected";
    showProblem(error.message);
    setTimeout(connect, 3000);
  }
}

loadDraft();
await Promise.all([history.open(), connect()]);
offerSeed(history.store.entries[0]);
document.body.dataset.ready = "true";
await resume();
