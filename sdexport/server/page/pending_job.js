// The job that this tab waits for, so that the page takes it up again after a reload.

import { store, stored } from "./dom.js";

const PENDING = "sdexport.job";

export class PendingJob {
  /** @param database HistoryStore, which may keep images too */
  constructor(database) {
    this.database = database;
  }

  /** @param job {id, count, width, height, state} */
  async keep(job) {
    store("sessionStorage", PENDING, job.id);
    try {
      await this.database.keepJob(job);
    } catch {
      // The storage is full: the job is found again, without its settings.
    }
  }

  /** The job that the page waited for before it was loaded anew, or null. */
  async find() {
    const id = stored("sessionStorage", PENDING);
    if (!id) return null;
    const kept = await this.database.keptJob(id).catch(() => null);
    return kept ?? { id };
  }

  async forget() {
    const id = stored("sessionStorage", PENDING);
    store("sessionStorage", PENDING, null);
    await this.database.forgetJob(id).catch(() => {});
  }
}
