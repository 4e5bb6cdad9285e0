// One job from its submission to its images.

import * as api from "./api.js";

const TRIES = 5;
const POLL = 1500; // milliseconds between questions for the place in the queue

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

export class JobRun {
  /** @param show {accepted(id), queued(position), started(), step(event, seconds left or null)} */
  constructor(show) {
    this.show = show;
    this.id = null;
    this.cancelled = false;
    this.times = []; // of the steps
    this.position = null; // in the queue, while it waits
  }

  /** @returns the job's images, [{png, parameters}]; null if it was cancelled
   *  @throws ServerError */
  async run(body) {
    const job = await api.submit(body);
    this.show.accepted(job.id);
    return this.wait(job);
  }

  /** Take up a job that was submitted before; see run. */
  async resume(id) {
    return this.wait(await api.jobState(id));
  }

  async wait(job) {
    this.id = job.id;
    if (this.cancelled) await this.cancel();
    else this.status(job);
    this.watchQueue();
    for (let tries = 0; ; tries += 1) {
      try {
        const end = await this.follow();
        if (end) return await this.finish(end);
      } catch (error) {
        if (this.cancelled && error instanceof api.ServerError && error.status === 404) return null;
        if (tries >= TRIES || !(error instanceof api.ServerError) || error.status) throw error;
      }
      if (tries >= TRIES) throw new api.ServerError("The connection to the server was lost.");
      await pause(400 * (tries + 1));
    }
  }

  async cancel() {
    this.cancelled = true;
    if (this.id === null) return;
    try {
      await api.cancelJob(this.id);
    } catch (error) {
      if (error.status !== 404 && error.status !== 409) throw error;
    }
  }

  /** Follow the events to the one that ends the job; null if the stream broke off. */
  async follow() {
    for await (const event of api.events(this.id)) {
      if (event.kind === "status") this.status(event.data);
      else if (event.kind === "step") this.step(event.data);
      else if (["done", "failed", "cancelled"].includes(event.kind)) {
        this.position = null;
        return event;
      }
    }
    return null;
  }

  /** Ask for the place in the queue while the job waits, which no event says. */
  async watchQueue() {
    while (this.position !== null && !this.cancelled) {
      await pause(POLL);
      if (this.position === null) return;
      try {
        this.status(await api.jobState(this.id));
      } catch {
        return; // the events say what is wrong
      }
    }
  }

  status({ status, position = 0 }) {
    const before = this.position;
    this.position = status === "queued" ? position : null;
    if (this.position !== null && this.position !== before) this.show.queued(position);
    else if (status === "running" && !this.times.length) this.show.started();
  }

  step(event) {
    this.position = null;
    this.times.push(performance.now());
    const first = this.times[0];
    const done = this.times.length - 1;
    const perStep = done ? (this.times.at(-1) - first) / done / 1000 : null;
    this.show.step(event, perStep === null ? null : perStep * (event.steps - event.step));
  }

  async finish({ kind, data }) {
    if (kind === "cancelled" && this.cancelled) return null;
    if (kind !== "done") {
      throw new api.ServerError(data.error?.message ?? "The image could not be generated.", 500);
    }
    return Promise.all(data.images.map(async ({ parameters }, index) => (
      { png: await api.imageFile(this.id, index), parameters }
    )));
  }
}
