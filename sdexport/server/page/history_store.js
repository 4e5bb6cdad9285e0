// The images that were generated, in the browser's database, bounded in number and size.

const LIMITS = { entries: 200, bytes: 200 * 2 ** 20 };

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

  store(mode) {
    return this.database.transaction("images", mode).objectStore("images");
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
  const opening = indexedDB.open("sdexport", 1);
  opening.onupgradeneeded = () => opening.result.createObjectStore("images", { keyPath: "id", autoIncrement: true });
  return opening;
}

function promised(asked) {
  return new Promise((resolve, reject) => {
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => reject(asked.error);
    asked.onblocked = () => reject(new Error("blocked"));
  });
}
