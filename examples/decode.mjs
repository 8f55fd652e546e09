// Reads masks messages, one JSON a line (a results.jsonl, or what `streamseg watch --jsonl` writes),
// and prints every object with the area of its mask. No packages needed:
//
//     node examples/decode.mjs < results.jsonl
//     node examples/decode.mjs --json < results.jsonl    one JSON an object, for programs
//
// `decodeMask` is all that a program in JavaScript needs; live messages come with the zeromq
// package: subscribe to "masks/" and give the second part of each message to JSON.parse.

import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const MAX_PIXELS = 64_000_000;

// COCO's compressed counts: base 32, lowest digit first, from the fourth number on as the
// difference to the number before the last.
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

// The mask as one byte a pixel, row by row. Everything is checked before memory is taken.
export function decodeMask(counts, [height, width]) {
  const pixels = height * width;
  if (!(height > 0 && width > 0 && pixels <= MAX_PIXELS)) throw new Error("frame too large");
  const runs = runLengths(counts);
  const total = runs.reduce((sum, run) => sum + run, 0);
  if (total !== pixels || runs.some((run) => run < 0)) {
    throw new Error(`run lengths of ${total} pixels: not a mask of ${height} x ${width}`);
  }
  const mask = new Uint8Array(pixels);
  let at = 0; // runs go down the columns, and alternate beginning with background
  runs.forEach((run, number) => {
    if (number % 2 === 1) {
      for (let i = at; i < at + run; i++) mask[(i % height) * width + Math.floor(i / height)] = 1;
    }
    at += run;
  });
  return mask;
}

function measure(mask, [height, width]) {
  let area = 0;
  let box = [width, height, 0, 0];
  const pixels = [];
  mask.forEach((inside, at) => {
    if (!inside) return;
    const [x, y] = [at % width, Math.floor(at / width)];
    area += 1;
    if (pixels.length < 5) pixels.push(at);
    box = [Math.min(box[0], x), Math.min(box[1], y), Math.max(box[2], x + 1), Math.max(box[3], y + 1)];
  });
  return { area, box: area ? box : [0, 0, 0, 0], pixels };
}

async function main() {
  const asJson = process.argv.includes("--json");
  for await (const line of createInterface({ input: process.stdin })) {
    const message = JSON.parse(line);
    if (message.v !== 1) throw new Error(`protocol version ${message.v}; this reads 1`);
    for (const { track, name, score, rle } of message.instances) {
      const { area, box, pixels } = measure(decodeMask(rle, message.size), message.size);
      if (asJson) console.log(JSON.stringify({ track, name, area, box, pixels }));
      else console.log(`${message.source} ${message.pts.toFixed(3)} s  #${track} ${name} ` +
        `${score.toFixed(2)}  ${area} pixels in ${box.join(", ")}`);
    }
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  main().catch((error) => {
    console.error(error.message);
    process.exitCode = 1;
  });
}
