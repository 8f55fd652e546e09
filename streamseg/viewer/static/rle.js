// Decoder of compressed COCO RLE into a crop of the frame.
//
// Small images need few pixels of a mask: with a step of n, only every n-th column and row is
// decoded.

export const MAX_PIXELS = 64_000_000;

// Parse compressed counts: base 32, lowest digit first; from the fourth number on, differences to
// the number before the previous one.
function parseCounts(counts) {
  const runs = [];
  let position = 0;
  while (position < counts.length) {
    let value = 0;
    let factor = 1;
    let code;
    do {
      code = counts.charCodeAt(position++) - 48;
      if (!(code >= 0 && code < 64) || factor > 32 ** 6) throw new Error("not COCO run lengths");
      value += (code & 31) * factor;
      factor *= 32;
    } while (code & 32);
    if (code & 16) value -= factor;
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  return runs;
}

function checkRuns(runs, pixels) {
  let total = 0;
  for (const run of runs) {
    if (run < 0) throw new Error("a run of less than nothing");
    total += run;
  }
  if (total !== pixels) throw new Error(`runs of ${total} pixels in a frame of ${pixels}`);
}

// Call visit(column, top, bottom) for the part of each run of ones in each column.
function forEachColumnRun(runs, height, visit) {
  let position = 0;
  for (let number = 0; number < runs.length; number++) {
    const end = position + runs[number];
    if (number % 2 === 1) {
      while (position < end) {
        const column = Math.floor(position / height);
        const top = position - column * height;
        const bottom = Math.min(height, top + end - position);
        visit(column, top, bottom);
        position += bottom - top;
      }
    }
    position = end;
  }
}

// Return the tight crop of a mask: x, y, width, height (in steps) and `bits`, one byte per pixel,
// row by row. The counts are validated before memory is allocated.
export function decodeMask(counts, [height, width], step = 1) {
  const pixels = height * width;
  if (!(height > 0 && width > 0 && pixels <= MAX_PIXELS)) throw new Error("a frame too large");
  const runs = parseCounts(counts);
  checkRuns(runs, pixels);
  let [left, top, right, bottom] = [width, height, 0, 0];
  forEachColumnRun(runs, height, (x, y1, y2) => {
    left = Math.min(left, x);
    right = x + 1;
    top = Math.min(top, y1);
    bottom = Math.max(bottom, y2);
  });
  if (right === 0) return { x: 0, y: 0, width: 0, height: 0, bits: new Uint8Array(0) };
  const [x, y] = [Math.ceil(left / step), Math.ceil(top / step)];
  const mask = { x, y, width: Math.ceil(right / step) - x, height: Math.ceil(bottom / step) - y };
  mask.bits = new Uint8Array(mask.width * mask.height);
  forEachColumnRun(runs, height, (frameColumn, y1, y2) => {
    if (frameColumn % step) return;
    const column = frameColumn / step - x;
    const end = Math.ceil(y2 / step);
    for (let row = Math.ceil(y1 / step); row < end; row++) {
      mask.bits[(row - y) * mask.width + column] = 1;
    }
  });
  return mask;
}

export function maskContains(mask, x, y) {
  const [column, row] = [x - mask.x, y - mask.y];
  if (column < 0 || row < 0 || column >= mask.width || row >= mask.height) return false;
  return mask.bits[row * mask.width + column] === 1;
}
