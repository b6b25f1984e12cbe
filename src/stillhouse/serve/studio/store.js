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
    const shelf = await open("readonly");
    return (await answer(shelf.getAll())).sort((one, other) => other.when - one.when || one.place - other.place);
  } catch {
    return [];
  }
}

/** Keep one. A browser that does not is no trouble: the picture stays as long as the page does. */
export async function keep(record) {
  try {
    await answer((await open("readwrite")).put(record));
  } catch (error) {
    console.warn("this picture is not kept", error);
  }
}

/** Keep these no longer. */
export async function forget(names) {
  try {
    const shelf = await open("readwrite");
    await Promise.all(names.map((name) => answer(shelf.delete(name))));
  } catch {
    // What could not be kept need not be forgotten.
  }
}

async function open(mode) {
  const asked = indexedDB.open(NAME, 1);
  asked.onupgradeneeded = () => asked.result.createObjectStore(SHELF, { keyPath: "id" });
  const database = await answer(asked);
  const change = database.transaction(SHELF, mode);
  change.oncomplete = change.onabort = () => database.close();
  return change.objectStore(SHELF);
}

function answer(asked) {
  return new Promise((resolve, reject) => {
    asked.onsuccess = () => resolve(asked.result);
    asked.onerror = () => reject(asked.error);
  });
}
