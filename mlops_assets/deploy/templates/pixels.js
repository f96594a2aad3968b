// From what a browser decodes to the pixels that the model was trained with: Pillow's arithmetic, to the last bit.
// A browser differs in what comes before: its JPEG decoder may be off by one or two in 255, it keeps half-transparent
// colours less precisely, and it knows nothing of 16-bit greys, which it rounds in a way of its own.

const BITS = 22; // Pillow's fixed point: 32 bits less 8 of a value and 2 of overshoot

// RGBA over black, as `Image.alpha_composite` does.
export function overBlack(rgba) {
  const rgb = new Uint8Array((rgba.length / 4) * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    for (let channel = 0; channel < 3; channel += 1, to += 1) {
      const value = rgba[from + channel] * rgba[from + 3] * 128 + 16384;
      rgb[to] = (((value >> 8) + value) >> 8) >> 7;
    }
  }
  return rgb;
}

// ITU-R 601-2 luma, as `convert("L")` does.
export function grey(rgb) {
  const made = new Uint8Array(rgb.length / 3);
  for (let to = 0, from = 0; to < made.length; to += 1, from += 3) {
    made[to] = (rgb[from] * 19595 + rgb[from + 1] * 38470 + rgb[from + 2] * 7471 + 32768) >> 16;
  }
  return made;
}

// Bilinear with antialiasing, as `resize(..., BILINEAR)` does: across, then down, each rounded to 8 bits.
export function resize(pixels, height, width, channels, newHeight, newWidth) {
  let made = pixels;
  if (newWidth !== width) made = pass(made, height, width, channels, newWidth, width * channels, channels, newWidth * channels, channels);
  if (newHeight !== height) made = pass(made, newWidth, height, channels, newHeight, channels, newWidth * channels, channels, newWidth * channels);
  return made;
}

// One direction: `lines` lines of `size` values become lines of `newSize`; the strides say where lines and values lie.
function pass(pixels, lines, size, channels, newSize, lineFrom, stepFrom, lineTo, stepTo) {
  const made = new Uint8Array(lines * newSize * channels);
  weights(size, newSize).forEach(({ first, factors }, place) => {
    for (let line = 0; line < lines; line += 1) {
      for (let channel = 0; channel < channels; channel += 1) {
        let sum = 2 ** (BITS - 1);
        let from = line * lineFrom + first * stepFrom + channel;
        for (const factor of factors) {
          sum += pixels[from] * factor;
          from += stepFrom;
        }
        made[line * lineTo + place * stepTo + channel] = Math.min(255, Math.max(0, sum >> BITS));
      }
    }
  });
  return made;
}

// Which values, and by how much, each new value is made of: a triangle as wide as the shrinking asks for.
function weights(size, newSize) {
  const scale = size / newSize;
  const support = Math.max(scale, 1);
  return Array.from({ length: newSize }, (_, place) => {
    const center = (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - support + 0.5));
    const end = Math.min(size, Math.trunc(center + support + 0.5));
    const raw = Array.from({ length: end - first }, (_, step) => Math.max(0, 1 - Math.abs((step + first - center + 0.5) / support)));
    const total = raw.reduce((sum, one) => sum + one, 0);
    return { first, factors: raw.map((one) => Math.trunc(0.5 + (one / total) * 2 ** BITS)) };
  });
}
