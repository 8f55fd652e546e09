// COCO's compressed run lengths, decoded into the part of the frame that a mask covers.
//
// A wall of small pictures needs few of a mask's pixels: with a step of n, only every n-th column
// and row is decoded.

export const MAX_PIXELS = 64_000_000;

// Base 32, lowest digit first, from the fourth number on as the difference to the one before the last.
function runLengths(counts) {
  const runs = [];
  let at = 0;
  while (at < counts.length) {
    let value = 0;
    let factor = 1;
    let code;
    do {
      code = counts.charCodeAt(at++) - 48;
      if (!(code >= 0 && code < 64) || factor > 32 ** 6) throw new Error("not COCO run lengths");
      value += (code & 31) * factor;
      factor *= 32;
    } while (code & 32);
    if (code & 16) value -= factor;
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  return runs;
}

function checked(runs, pixels) {
  let total = 0;
  for (const run of runs) {
    if (run < 0) throw new Error("a run of less than nothing");
    total += run;
  }
  if (total !== pixels) throw new Error(`runs of ${total} pixels in a frame of ${pixels}`);
  return runs;
}

// Calls part(column, top, bottom) for every piece of a run that lies in one column.
function eachPiece(runs, height, part) {
  let at = 0;
  for (let number = 0; number < runs.length; number++) {
    const end = at + runs[number];
    if (number % 2 === 1) {
      while (at < end) {
        const column = Math.floor(at / height);
        const top = at - column * height;
        const bottom = Math.min(height, top + end - at);
        part(column, top, bottom);
        at += bottom - top;
      }
    }
    at = end;
  }
}

// The part of the frame that a mask covers: x, y, width, height and one byte a pixel, row by row,
// all counted in steps. Everything is checked before memory is taken.
export function decodeMask(counts, [height, width], step = 1) {
  const pixels = height * width;
  if (!(height > 0 && width > 0 && pixels <= MAX_PIXELS)) throw new Error("a frame too large");
  const runs = checked(runLengths(counts), pixels);
  let [left, top, right, bottom] = [width, height, 0, 0];
  eachPiece(runs, height, (x, y1, y2) => {
    left = Math.min(left, x);
    right = x + 1;
    top = Math.min(top, y1);
    bottom = Math.max(bottom, y2);
  });
  if (right === 0) return { x: 0, y: 0, width: 0, height: 0, bits: new Uint8Array(0) };
  const [x, y] = [Math.ceil(left / step), Math.ceil(top / step)];
  const mask = { x, y, width: Math.ceil(right / step) - x, height: Math.ceil(bottom / step) - y };
  mask.bits = new Uint8Array(mask.width * mask.height);
  eachPiece(runs, height, (column, y1, y2) => {
    if (column % step) return;
    const first = column / step - x;
    const last = Math.ceil(y2 / step);
    for (let row = Math.ceil(y1 / step); row < last; row++) {
      mask.bits[(row - y) * mask.width + first] = 1;
    }
  });
  return mask;
}

export function covers(mask, x, y) {
  const [column, row] = [x - mask.x, y - mask.y];
  if (column < 0 || row < 0 || column >= mask.width || row >= mask.height) return false;
  return mask.bits[row * mask.width + column] === 1;
}
