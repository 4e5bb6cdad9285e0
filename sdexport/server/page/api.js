// The server's native API: requests with the key, errors, and events as they arrive.

import { $, store, stored } from "./dom.js";

const KEY = "sdexport.key";

/** An answer that is no success; or none at all, with status 0. */
export class ServerError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/** JSON whose seeds may be larger than numbers here are exact: those become strings. */
export function parseJson(text) {
  return JSON.parse(text.replace(/(?<!\\)("seed"\s*:\s*)(\d{16,})(?=\s*[,}])/g, '$1"$2"'));
}

let asking = null;

/** Ask for the key once, however many requests wait for it. */
function askForKey(wrong) {
  asking ??= new Promise((resolve) => {
    const dialog = $("key-dialog");
    const error = $("key-error");
    error.hidden = !wrong;
    error.textContent = wrong ? "The server does not accept this key." : "";
    $("key").value = "";
    $("key-form").onsubmit = (event) => {
      event.preventDefault();
      const key = $("key").value.trim();
      if (!/^[\x21-\x7e]+$/.test(key)) {
        error.hidden = false;
        error.textContent = key ? "A key has letters, digits and signs of ASCII only." : "Enter the key.";
        return;
      }
      store("sessionStorage", KEY, key);
      currentKey = key;
      dialog.close();
    };
    dialog.oncancel = (event) => event.preventDefault();
    dialog.onclose = () => { asking = null; resolve(); };
    dialog.showModal();
  });
  return asking;
}

let currentKey = stored("sessionStorage", KEY);

/** Send a request; asks for the key when the server wants one.
 *  @throws ServerError */
export async function request(path, options = {}) {
  for (;;) {
    const used = currentKey;
    const headers = { ...options.headers };
    if (used) headers.Authorization = `Bearer ${used}`;
    let response;
    try {
      response = await fetch(path, { ...options, headers });
    } catch {
      throw new ServerError("The server does not answer. Check that it is running, then try again.");
    }
    if (response.status === 401) {
      if (used === currentKey) await askForKey(Boolean(used));
      continue;
    }
    if (!response.ok) throw await errorOf(response);
    return response;
  }
}

async function errorOf(response) {
  let error = {};
  try {
    error = parseJson(await response.text()).error ?? {};
  } catch {
    // Not JSON, such as a proxy's page.
  }
  const message = typeof error.message === "string" ? error.message : `The server answered ${response.status}.`;
  return new ServerError(message, response.status);
}

async function json(path, options = {}) {
  return parseJson(await (await request(path, options)).text());
}

const post = (path, body, type) => json(path, { method: "POST", body, headers: { "Content-Type": type } });

const jobPath = (id) => `v1/jobs/${encodeURIComponent(id)}`;

/** What the server offers. */
export const serverInfo = () => json("v1/server");

/** The settings that an image file carries. */
export const imageSettings = (file) => post("v1/image-settings", file, "application/octet-stream");

/** Submit a job; `body` is JSON text, since a seed may be larger than numbers here are exact. */
export const submit = (body) => post("v1/jobs", body, "application/json");

export const jobState = (id) => json(jobPath(id));

export const cancelJob = (id) => request(jobPath(id), { method: "DELETE" });

/** An image of a job, as the file that the server wrote. */
export async function imageFile(id, index) {
  return (await request(`${jobPath(id)}/images/${index}`)).blob();
}

/** The events of a job, until its stream ends. */
export async function* events(id) {
  const response = await request(`${jobPath(id)}/events`);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      pending = (pending + value).replaceAll("\r\n", "\n");
      let end;
      while ((end = pending.indexOf("\n\n")) >= 0) {
        const event = parseEvent(pending.slice(0, end));
        pending = pending.slice(end + 2);
        if (event) yield event;
      }
    }
  } catch (error) {
    if (error instanceof ServerError) throw error;
    throw new ServerError("The connection to the server was lost.");
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parseEvent(text) {
  let kind = "message";
  const data = [];
  for (const line of text.split("\n")) {
    if (line.startsWith("event:")) kind = line.slice(6).trim();
    else if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
  }
  return data.length ? { kind, data: parseJson(data.join("\n")) } : null;
}
