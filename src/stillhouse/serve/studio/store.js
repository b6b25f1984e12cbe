/**
 * Pictures that are kept, with their requests, when the page is left.
 *
 * In IndexedDB: pictures are binary, and a few larger ones would fill the five megabytes of localStorage.
 */

export const MOST = 60;
const NAME = "stillhouse";
const SHELF = "pictures";

/** All of them, the latest first and those of one group in its order; none where the browser keeps nothing. */
export async function kept() {
  try {
    return (await answer((await open("readonly")).getAll())).sort((one, other) => other.when - one.when || one.place - other.place);
  } catch {
    return [];
  }
}

/** Keep one. A browser that does not is no trouble: the picture stays as long as the page does. */
export async function keep(record) {
  try {
    await write((shelf) => shelf.put(record));
  } catch (error) {
    console.warn("this picture is not kept", error);
  }
}

/** Keep these no longer. */
export async function forget(names) {
  try {
    await write((shelf) => names.forEach((name) => shelf.delete(name)));
  } catch {
    // What could not be kept need not be forgotten.
  }
}

/**
 * Change the shelf. Where the database is open, all of it is asked for before the page can do anything else: a page that
 * is left aborts what was not committed, and pictures that were deleted would come back.
 */
async function write(change) {
  const shelf = await open("readwrite");
  change(shelf);
  shelf.transaction.commit();
  await new Promise((resolve, reject) => {
    shelf.transaction.oncomplete = resolve;
    shelf.transaction.onabort = () => reject(shelf.transaction.error);
  });
}

let opened = null;

async function open(mode) {
  try {
    return shelfOf(await database(), mode);
  } catch {
    opened = null; // a browser may drop the database of a page that was not seen for long, and not say so
    return shelfOf(await database(), mode);
  }
}

function shelfOf(database, mode) {
  return database.transaction(SHELF, mode).objectStore(SHELF);
}

/** The database, opened once; once more where it was closed, or given up for another page that has a newer one. */
function database() {
  opened ??= connected();
  return opened;
}

async function connected() {
  const asked = indexedDB.open(NAME, 1);
  asked.onupgradeneeded = () => asked.result.createObjectStore(SHELF, { keyPath: "id" });
  const database = await answer(asked);
  database.onclose = () => (opened = null);
  database.onversionchange = () => {
    database.close();
    opened = null;
  };
  return database;
}

function answer(asked) {
  return new Promise((resolve, reject) => {
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => reject(asked.error);
  });
}
