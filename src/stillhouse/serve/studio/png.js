/** Reads the request that `stillhouse` writes into a text chunk of a PNG. */

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const NOTE = "stillhouse";

/** `{ model, request }` of a PNG, or null if it has none. */
export async function readNote(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  if (SIGNATURE.some((byte, place) => bytes[place] !== byte)) return null;
  for (const { kind, content } of chunks(bytes)) {
    const text = textOf(kind, content);
    if (text) {
      try {
        return JSON.parse(text);
      } catch {
        return null;
      }
    }
  }
  return null;
}

function* chunks(bytes) {
  const view = new DataView(bytes.buffer);
  for (let place = SIGNATURE.length; place + 12 <= bytes.length; ) {
    const length = view.getUint32(place);
    const kind = String.fromCharCode(...bytes.subarray(place + 4, place + 8));
    yield { kind, content: bytes.subarray(place + 8, place + 8 + length) };
    place += 12 + length;
  }
}

function textOf(kind, content) {
  const end = content.indexOf(0);
  if ((kind !== "tEXt" && kind !== "iTXt") || latin(content.subarray(0, end)) !== NOTE) return null;
  if (kind === "tEXt") return latin(content.subarray(end + 1));
  // iTXt: after the keyword, two flags, a language and a translated keyword, each of those two ending in 0.
  if (content[end + 1] !== 0) return null;
  const language = content.indexOf(0, end + 3);
  const translated = content.indexOf(0, language + 1);
  return new TextDecoder().decode(content.subarray(translated + 1));
}

function latin(bytes) {
  return Array.from(bytes, (byte) => String.fromCharCode(byte)).join("");
}
