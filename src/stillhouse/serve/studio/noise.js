/** Noise, shown until the first preview. */

const SIDE = 64;

/** Paint noise onto a canvas, the same for the same seed. */
export function paintNoise(canvas, seed) {
  canvas.width = canvas.height = SIDE;
  const pen = canvas.getContext("2d");
  const picture = pen.createImageData(SIDE, SIDE);
  const random = randomOf(Number(BigInt(seed) % 4294967296n));
  for (let place = 0; place < picture.data.length; place += 4) {
    for (let channel = 0; channel < 3; channel++) {
      // The sum of uniform random numbers is nearly normal, like the noise of diffusion.
      picture.data[place + channel] = 128 + 110 * (random() + random() + random() - 1.5);
    }
    picture.data[place + 3] = 255;
  }
  pen.putImageData(picture, 0, 0);
}

/** Mulberry32, a small uniform random number generator. */
function randomOf(state) {
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}
