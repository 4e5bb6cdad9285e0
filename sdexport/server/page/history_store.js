// The images that were generated, in the browser's database, bounded in number and size.

const LIMITS = { entries: 200, bytes: 200 * 2 ** 20 };
const LONGEST_JOB = 24 * 3600 * 1000; // milliseconds

/** Entries, newest first. Where the browser has no database they are kept until the page closes. */
export class HistoryStore {
  constructor() {
    this.entries = [];
    this.database = null;
  }

  /** @returns whether entries survive a reload */
  async open() {
    try {
      this.database = await promised(openDatabase());
      this.entries = (await promised(this.store("readonly").getAll())).reverse();
      this.database.onversionchange = () => this.database.close();
    } catch {
      this.database = null;
    }
    return this.database !== null;
  }

  store(mode, name = "images") {
    return this.database.transaction(name, mode).objectStore(name);
  }

  /** Keep an entry; the oldest go where the bounds are reached.
   *  @returns {stored, removed}: whether it is in the database, and the entries that went */
  async add(entry) {
    entry.bytes = sizeOf(entry);
    this.entries.unshift(entry);
    const removed = [];
    let total = this.entries.reduce((sum, each) => sum + each.bytes, 0);
    while (this.entries.length > LIMITS.entries || (total > LIMITS.bytes && this.entries.length > 1)) {
      const oldest = this.entries.pop();
      total -= oldest.bytes;
      removed.push(oldest);
    }
    let stored = false;
    try {
      for (const each of removed) await this.erase(each);
      if (this.database) {
        entry.id = await promised(this.store("readwrite").add({ ...entry }));
        stored = true;
      }
    } catch {
      // The storage is full: the entry is kept until the page closes.
    }
    return { stored, removed };
  }

  async remove(entry) {
    this.entries = this.entries.filter((each) => each !== entry);
    await this.erase(entry);
  }

  async erase({ id }) {
    if (this.database && id !== undefined) await promised(this.store("readwrite").delete(id));
  }

  /** Keep what the page knows of a job that is not over: {id, ...}. */
  async keepJob(job) {
    if (this.database) await promised(this.store("readwrite", "jobs").put({ ...job, created: Date.now() }));
  }

  /** What was kept of a job, or null. */
  async keptJob(id) {
    return this.database ? (await promised(this.store("readonly", "jobs").get(id))) ?? null : null;
  }

  /** Forget a job, and those of pages that were closed long ago. */
  async forgetJob(id) {
    if (!this.database) return;
    const jobs = this.store("readwrite", "jobs");
    const kept = await promised(jobs.getAll());
    const old = Date.now() - LONGEST_JOB;
    await Promise.all(kept.filter((job) => job.id === id || job.created < old).map((job) => promised(jobs.delete(job.id))));
  }

  async clear() {
    this.entries = [];
    if (this.database) await promised(this.store("readwrite").clear());
  }
}

function sizeOf(value) {
  if (value instanceof Blob) return value.size;
  if (typeof value === "string") return 2 * value.length;
  if (value === null || typeof value !== "object") return 8;
  return Object.values(value).reduce((sum, each) => sum + sizeOf(each), 0);
}

function openDatabase() {
  const opening = indexedDB.open("sdexport", 2);
  opening.onupgradeneeded = ({ oldVersion }) => {
    const database = opening.result;
    if (oldVersion < 1) database.createObjectStore("images", { keyPath: "id", autoIncrement: true });
    database.createObjectStore("jobs", { keyPath: "id" });
  };
  return opening;
}

function promised(asked) {
  return new Promise((resolve, reject) => {
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => reject(asked.error);
    asked.onblocked = () => reject(new Error("blocked"));
  });
}
