// One job from its submission to its images.

import * as api from "./api.js";

const TRIES = 5;

export class JobRun {
  /** @param show {queued(position), started(), step(event, seconds left or null)} */
  constructor(show) {
    this.show = show;
    this.id = null;
    this.cancelled = false;
    this.times = [];
  }

  /** @returns the job's images, [{png, parameters}]; null if it was cancelled
   *  @throws ServerError */
  async run(body) {
    const job = await api.submit(body);
    this.id = job.id;
    if (this.cancelled) await this.cancel();
    else this.status(job);
    for (let tries = 0; ; tries += 1) {
      try {
        const end = await this.follow();
        if (end) return await this.finish(end);
      } catch (error) {
        if (this.cancelled && error instanceof api.ServerError && error.status === 404) return null;
        if (tries >= TRIES || !(error instanceof api.ServerError) || error.status) throw error;
      }
      if (tries >= TRIES) throw new api.ServerError("The connection to the server was lost.");
      await new Promise((resolve) => setTimeout(resolve, 400 * (tries + 1)));
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
      else if (["done", "failed", "cancelled"].includes(event.kind)) return event;
    }
    return null;
  }

  status({ status, position }) {
    if (status === "queued") this.show.queued(position ?? 0);
    else if (status === "running" && !this.times.length) this.show.started();
  }

  step(event) {
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
