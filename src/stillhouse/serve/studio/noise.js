/** Noise, which every picture begins as: shown until there is something to see. */

const SIDE = 64;

/** Paint noise onto a canvas, the same for the same seed. */
export function paintNoise(canvas, seed) {
  canvas.width = canvas.height = SIDE;
  const pen = canvas.getContext("2d");
  const picture = pen.createImageData(SIDE, SIDE);
  const dice = diceOf(Number(BigInt(seed) % 4294967296n));
  for (let place = 0; place < picture.data.length; place += 4) {
    for (let channel = 0; channel < 3; channel++) {
      // The sum of some even dice is nearly normal, as a diffusion's noise is.
      picture.data[place + channel] = 128 + 110 * (dice() + dice() + dice() - 1.5);
    }
    picture.data[place + 3] = 255;
  }
  pen.putImageData(picture, 0, 0);
}

/** Mulberry32: small, even, and enough for the eye. */
function diceOf(state) {
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}
