// Renderer of one source: its canvas, its newest frame and the followed track.
//
// Runs in the render worker, so that the page stays responsive.

import { Overlay, drawBoxes, drawImage, drawLabels, drawMasks, drawTrail } from "./drawing.js";
import { FollowedTrack, TrackTimes } from "./followed_track.js";
import { instanceColor, labelColor } from "./palette.js";
import { decodeMask, maskContains } from "./rle.js";

const MAX_CANVAS_WIDTH = 1920;

export class SourceRenderer {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: false });
    this.overlay = new Overlay();
    this.trackTimes = new TrackTimes();
    this.followed = null;
    this.message = null;
    this.image = null;
    this.decoded = null; // instances and stuff of the frame, at the resolution of the canvas
    this.box = { width: 1, height: 1, ratio: 1 };
  }

  // Set the next frame. The renderer closes the image when it is replaced.
  setFrame(message, image) {
    this.image?.close();
    [this.message, this.image] = [message, image];
    this.trackTimes.add(message);
    this.followed?.update(message);
    this.decoded = null;
  }

  clearFrame() {
    this.image?.close();
    [this.message, this.image, this.decoded] = [null, null, null];
  }

  // Set the box in which the page shows the canvas: width and height in device pixels, and `ratio`,
  // the number of device pixels per CSS pixel.
  resize(box) {
    this.box = box;
    this.decoded = null;
  }

  draw(layers) {
    if (!this.message) return;
    this.decode();
    const { context, canvas, decoded, followed } = this;
    const followedTrack = followed && !followed.isDisconnected ? followed.track : null;
    drawImage(context, this.image, canvas.width, canvas.height);
    if (layers.masks) drawMasks(this.overlay, decoded, followedTrack, context);
    if (layers.boxes) drawBoxes(context, decoded, followedTrack);
    if (followedTrack !== null) drawTrail(context, decoded, followed.trail, instanceColor(followed));
    if (layers.labels || layers.ids) drawLabels(context, decoded, layers, followedTrack);
  }

  // Follow the instance at a position in the box (0 to 1 on both axes).
  // Returns the reason if it can't be followed, otherwise null.
  followAt(x, y) {
    const instance = this.instanceAt(x, y);
    if (instance?.track === -1) return "It has no identity yet: wait a moment and try again.";
    this.followed = instance ? this.createFollowedTrack(instance) : null;
    return null;
  }

  // Follow the next track of the frame. Returns the reason if there is none, otherwise null.
  followNext() {
    const tracked = (this.message?.instances ?? []).filter(({ track }) => track !== -1);
    if (tracked.length === 0) return "There is nothing with an identity to follow.";
    const index = tracked.findIndex(({ track }) => track === this.followed?.track);
    this.followed = this.createFollowedTrack(tracked[(index + 1) % tracked.length]);
    return null;
  }

  unfollow() {
    this.followed = null;
    return null;
  }

  createFollowedTrack(instance) {
    const firstSeen = this.trackTimes.firstSeen(instance.track);
    const followed = new FollowedTrack(instance, this.message, firstSeen);
    followed.update(this.message);
    return followed;
  }

  instanceAt(x, y) {
    if (!this.message) return undefined;
    this.decode();
    const { box, canvas, decoded } = this;
    const { zoom, scale, step } = decoded;
    const column = (x * box.width - (box.width - canvas.width * zoom) / 2) / zoom;
    const row = (y * box.height - (box.height - canvas.height * zoom) / 2) / zoom;
    const [frameX, frameY] = [column / scale, row / scale];
    const [maskX, maskY] = [Math.floor(frameX / step), Math.floor(frameY / step)];
    const isInBox = ({ box: [x1, y1, x2, y2] }) =>
      frameX >= x1 && frameX < x2 && frameY >= y1 && frameY < y2;
    const topmostFirst = decoded.instances.slice().reverse(); // the last one drawn is on top
    return (
      topmostFirst.find(({ mask }) => maskContains(mask, maskX, maskY)) ?? topmostFirst.find(isInBox)
    );
  }

  // Decode the masks at the resolution of the canvas, once per frame and size.
  decode() {
    if (this.decoded) return;
    const { box, canvas } = this;
    const [height, width] = this.message.size;
    const boxScale = Math.min(box.width / width, box.height / height);
    const scale = Math.min(boxScale, MAX_CANVAS_WIDTH / width);
    const [canvasWidth, canvasHeight] = [width, height].map((side) =>
      Math.max(1, Math.round(side * scale)));
    if (canvas.width !== canvasWidth || canvas.height !== canvasHeight) {
      [canvas.width, canvas.height] = [canvasWidth, canvasHeight];
    }
    const step = Math.max(1, Math.floor(1 / scale));
    const zoom = boxScale / scale; // of the canvas by the browser
    const withMask = (item) => ({ ...item, mask: decodeMask(item.rle, this.message.size, step) });
    const stuff = (this.message.segments ?? []).filter(({ thing }) => !thing);
    this.decoded = {
      instances: this.message.instances.map(withMask),
      stuff: stuff.map((segment) => ({ ...withMask(segment), color: labelColor(segment.label) })),
      size: this.message.size,
      step,
      scale,
      zoom,
      ratio: box.ratio / zoom,
    };
  }
}
