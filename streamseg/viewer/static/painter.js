// The worker that paints every canvas: frames come in as they came over the WebSocket.
//
// A source's frames are painted one after the other; of those that come meanwhile the newest is
// kept. Each frame that came is answered with "painted", whether it was or was not.

import { jpegSize } from "./jpeg.js";
import { Scene } from "./scene.js";

const scenes = new Map();
const busy = new Set();
const newest = new Map();
let layers = { masks: true, boxes: false, labels: true, ids: true };

function unpack(buffer) {
  const length = new DataView(buffer).getUint32(0);
  const message = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  return { message, jpeg: new Uint8Array(buffer, 4 + length) };
}

function take(frame) {
  const { source } = frame.message;
  if (!scenes.has(source)) {
    postMessage({ kind: "painted", source });
  } else if (busy.has(source)) {
    if (newest.has(source)) postMessage({ kind: "painted", source });
    newest.set(source, frame);
  } else {
    paintAll(source, frame);
  }
}

async function paintAll(source, frame) {
  busy.add(source);
  for (let next = frame; next; newest.delete(source)) {
    await paintOne(source, next);
    next = newest.get(source);
  }
  busy.delete(source);
}

async function paintOne(source, { message, jpeg }) {
  const begun = performance.now();
  const report = { kind: "painted", source };
  try {
    const picture = jpeg.length ? await decode(jpeg, message.size) : null;
    const scene = scenes.get(source);
    if (scene) {
      scene.show(message, picture);
      scene.paint(layers);
      Object.assign(report, told(scene), { took: performance.now() - begun });
    } else {
      picture?.close();
    }
  } catch (error) {
    scenes.get(source)?.drop();
    report.failed = error.message;
  }
  postMessage(report);
}

function decode(jpeg, [height, width]) {
  const [high, wide] = jpegSize(jpeg);
  if (high !== height || wide !== width) {
    throw new Error(`a picture of ${wide} x ${high}, not ${width} x ${height}`);
  }
  return createImageBitmap(new Blob([jpeg], { type: "image/jpeg" }));
}

const told = ({ follow, picture }) => ({
  follow: follow ? follow.report : null,
  pictured: picture !== null,
});

function repaint(source) {
  const scene = scenes.get(source);
  if (!scene) return;
  scene.paint(layers);
  postMessage({ kind: "repainted", source, ...told(scene) });
}

function change(source, act) {
  const scene = scenes.get(source);
  if (!scene) return;
  const why = act(scene);
  if (why) postMessage({ kind: "refused", source, why });
  repaint(source);
}

const orders = {
  frame: ({ buffer }) => take(unpack(buffer)),
  open: ({ source, canvas }) => scenes.set(source, new Scene(canvas)),
  close: ({ source }) => {
    scenes.get(source)?.drop();
    scenes.delete(source);
  },
  fit: ({ source, box }) => change(source, (scene) => scene.fit(box)),
  layers: (order) => {
    layers = order.layers;
    for (const source of scenes.keys()) repaint(source);
  },
  followAt: ({ source, x, y }) => change(source, (scene) => scene.followAt(x, y)),
  followNext: ({ source }) => change(source, (scene) => scene.followNext()),
  unfollow: ({ source }) => change(source, (scene) => void (scene.follow = null)),
};

onmessage = ({ data }) => orders[data.kind](data);
