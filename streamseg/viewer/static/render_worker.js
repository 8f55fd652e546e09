// Web worker that renders the canvases of all sources.
//
// The frames of a source are rendered one after the other; of the frames that arrive while one is
// rendered, only the newest is kept. Each frame is answered by "frameDone", rendered or not.

import { jpegSize } from "./jpeg.js";
import { SourceRenderer } from "./source_renderer.js";

const renderers = new Map();
const busySources = new Set();
const newestFrames = new Map();
let layers = { masks: true, boxes: false, labels: true, ids: true };

// Decode a frame: length of the JSON (4 bytes, big endian), JSON, JPEG.
function decodeFrame(buffer) {
  const length = new DataView(buffer).getUint32(0);
  const message = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  return { message, jpeg: new Uint8Array(buffer, 4 + length) };
}

function receiveFrame(frame) {
  const { source } = frame.message;
  if (!renderers.has(source)) {
    postMessage({ kind: "frameDone", source });
  } else if (busySources.has(source)) {
    if (newestFrames.has(source)) postMessage({ kind: "frameDone", source });
    newestFrames.set(source, frame);
  } else {
    renderFrames(source, frame);
  }
}

async function renderFrames(source, firstFrame) {
  busySources.add(source);
  for (let frame = firstFrame; frame; newestFrames.delete(source)) {
    await renderFrame(source, frame);
    frame = newestFrames.get(source);
  }
  busySources.delete(source);
}

async function renderFrame(source, { message, jpeg }) {
  const startedAt = performance.now();
  const report = { kind: "frameDone", source };
  try {
    const image = jpeg.length ? await decodeImage(jpeg, message.size) : null;
    const renderer = renderers.get(source);
    if (renderer) {
      renderer.setFrame(message, image);
      renderer.draw(layers);
      Object.assign(report, describe(renderer), { renderMs: performance.now() - startedAt });
    } else {
      image?.close();
    }
  } catch (error) {
    renderers.get(source)?.clearFrame();
    report.error = error.message;
  }
  postMessage(report);
}

function decodeImage(jpeg, [height, width]) {
  const [jpegHeight, jpegWidth] = jpegSize(jpeg);
  if (jpegHeight !== height || jpegWidth !== width) {
    throw new Error(`an image of ${jpegWidth} x ${jpegHeight}, not ${width} x ${height}`);
  }
  return createImageBitmap(new Blob([jpeg], { type: "image/jpeg" }));
}

const describe = ({ followed, image }) => ({
  followed: followed ? followed.summary : null,
  hasImage: image !== null,
});

function redraw(source) {
  const renderer = renderers.get(source);
  if (!renderer) return;
  renderer.draw(layers);
  postMessage({ kind: "redrawn", source, ...describe(renderer) });
}

// Apply a change to the renderer of a source and redraw; report the reason if it returns one.
function applyChange(source, change) {
  const renderer = renderers.get(source);
  if (!renderer) return;
  const reason = change(renderer);
  if (reason) postMessage({ kind: "followFailed", source, reason });
  redraw(source);
}

const handlers = {
  frame: ({ buffer }) => receiveFrame(decodeFrame(buffer)),
  open: ({ source, canvas }) => renderers.set(source, new SourceRenderer(canvas)),
  close: ({ source }) => {
    renderers.get(source)?.clearFrame();
    renderers.delete(source);
  },
  resize: ({ source, box }) => applyChange(source, (renderer) => renderer.resize(box)),
  layers: (request) => {
    layers = request.layers;
    for (const source of renderers.keys()) redraw(source);
  },
  followAt: ({ source, x, y }) => applyChange(source, (renderer) => renderer.followAt(x, y)),
  followNext: ({ source }) => applyChange(source, (renderer) => renderer.followNext()),
  unfollow: ({ source }) => applyChange(source, (renderer) => renderer.unfollow()),
};

onmessage = ({ data }) => handlers[data.kind](data);
