/**
 * Storage of finished images with their requests, across page loads.
 *
 * IndexedDB, because images are binary and a few large ones would fill the five megabytes of localStorage.
 */

export const MAX_STORED = 60;
const NAME = "stillhouse";
const VERSION = 2;
const OBJECT_STORE = "images";

/** All records, newest first, groups in order; none if the browser has no storage. */
export async function loadItems() {
  try {
    const records = await promiseOf((await open("readonly")).getAll());
    return records.sort((first, second) => second.createdAt - first.createdAt || first.place - second.place);
  } catch {
    return [];
  }
}

/** Store a record. Failure is not an error: the image remains until the page is closed. */
export async function storeItem(record) {
  try {
    await write((store) => store.put(record));
  } catch (error) {
    console.warn("this image is not stored", error);
  }
}

/** Delete records. */
export async function deleteItems(ids) {
  try {
    await write((store) => ids.forEach((id) => store.delete(id)));
  } catch {
    // Records that could not be stored need not be deleted.
  }
}

/**
 * Change the store. All requests are issued synchronously once the database is open, and committed explicitly: a page
 * that is closed aborts uncommitted transactions, and deleted images would reappear.
 */
async function write(change) {
  const store = await open("readwrite");
  change(store);
  store.transaction.commit();
  await new Promise((resolve, reject) => {
    store.transaction.oncomplete = resolve;
    store.transaction.onabort = () => reject(store.transaction.error);
  });
}

let connection = null;

async function open(mode) {
  try {
    return storeOf(await database(), mode);
  } catch {
    connection = null; // browsers may close the database of an inactive page without an event
    return storeOf(await database(), mode);
  }
}

function storeOf(database, mode) {
  return database.transaction(OBJECT_STORE, mode).objectStore(OBJECT_STORE);
}

/** The open database; opened again after it was closed or yielded to a page with a newer version. */
function database() {
  connection ??= connect();
  return connection;
}

async function connect() {
  const request = indexedDB.open(NAME, VERSION);
  request.onupgradeneeded = () => {
    for (const name of [...request.result.objectStoreNames]) request.result.deleteObjectStore(name);
    request.result.createObjectStore(OBJECT_STORE, { keyPath: "id" });
  };
  const database = await promiseOf(request);
  database.onclose = () => (connection = null);
  database.onversionchange = () => {
    database.close();
    connection = null;
  };
  return database;
}

function promiseOf(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
