// One source's canvas: the newest frame, what was found in it, and whom somebody follows.
//
// Lives in the painter's worker, so that nothing it does can hold up the page.

import { Follow, Sightings } from "./follow.js";
import { Overlay, drawBoxes, drawMasks, drawPicture, drawTags, drawTrail } from "./paint.js";
import { colourOf, colourOfLabel } from "./palette.js";
import { covers, decodeMask } from "./rle.js";

const WIDEST = 1920; // of a canvas; beyond that nobody sees a difference

export class Scene {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: false });
    this.overlay = new Overlay();
    this.sightings = new Sightings();
    this.follow = null;
    this.message = null;
    this.picture = null;
    this.found = null; // decoded as finely as the box needs it
    this.box = { width: 1, height: 1, ratio: 1 };
  }

  // Show another frame. The picture is this scene's from now on.
  show(message, picture) {
    this.picture?.close();
    [this.message, this.picture] = [message, picture];
    this.sightings.add(message);
    this.follow?.update(message);
    this.found = null;
  }

  // Nothing of the frame can be used.
  drop() {
    this.picture?.close();
    [this.message, this.picture, this.found] = [null, null, null];
  }

  // The canvas is shown in a box of so many device pixels, `ratio` of which are one CSS pixel.
  fit(box) {
    this.box = box;
    this.found = null;
  }

  paint(layers) {
    if (!this.message) return;
    this.look();
    const { context, canvas, found } = this;
    const followed = this.follow && !this.follow.crossed ? this.follow.track : null;
    drawPicture(context, this.picture, canvas.width, canvas.height);
    if (layers.masks) drawMasks(this.overlay, found, followed, context);
    if (layers.boxes) drawBoxes(context, found, followed);
    if (followed !== null) drawTrail(context, found, this.follow, colourOf(this.follow));
    if (layers.labels || layers.ids) drawTags(context, found, layers, followed);
  }

  // Follow what is at a place of the box (0 to 1 in both directions).
  // Returns why it can't be followed, if it can't.
  followAt(x, y) {
    const object = this.objectAt(x, y);
    if (object?.track === -1) return "It has no identity yet: wait a moment and try again.";
    this.follow = object ? this.followed(object) : null;
    return null;
  }

  // Follow the next identity in the frame, for those who use the keyboard.
  followNext() {
    const tracks = (this.message?.instances ?? []).filter(({ track }) => track !== -1);
    if (tracks.length === 0) return "There is nothing with an identity to follow.";
    const at = tracks.findIndex(({ track }) => track === this.follow?.track);
    this.follow = this.followed(tracks[(at + 1) % tracks.length]);
    return null;
  }

  followed(object) {
    const follow = new Follow(object, this.message, this.sightings.firstOf(object.track));
    follow.update(this.message);
    return follow;
  }

  objectAt(x, y) {
    if (!this.message) return undefined;
    this.look();
    const { box, canvas, found } = this;
    const column = (x * box.width - (box.width - canvas.width * found.shown) / 2) / found.shown;
    const row = (y * box.height - (box.height - canvas.height * found.shown) / 2) / found.shown;
    const [frameX, frameY] = [column / found.scale, row / found.scale];
    const [stepX, stepY] = [Math.floor(frameX / found.step), Math.floor(frameY / found.step)];
    const inBox = ({ box: [x1, y1, x2, y2] }) =>
      frameX >= x1 && frameX < x2 && frameY >= y1 && frameY < y2;
    const upwards = found.objects.slice().reverse(); // the last one painted is on top
    return upwards.find(({ mask }) => covers(mask, stepX, stepY)) ?? upwards.find(inBox);
  }

  // Decode what was found, as finely as the box needs it; once a frame.
  look() {
    if (this.found) return;
    const { box, canvas } = this;
    const [height, width] = this.message.size;
    const fits = Math.min(box.width / width, box.height / height);
    const scale = Math.min(fits, WIDEST / width);
    const [wide, high] = [width, height].map((side) => Math.max(1, Math.round(side * scale)));
    if (canvas.width !== wide || canvas.height !== high) [canvas.width, canvas.height] = [wide, high];
    const step = Math.max(1, Math.floor(1 / scale));
    const withMask = (part) => ({ ...part, mask: decodeMask(part.rle, this.message.size, step) });
    const stuff = (this.message.segments ?? []).filter(({ thing }) => !thing);
    this.found = {
      objects: this.message.instances.map(withMask),
      stuff: stuff.map((part) => ({ ...withMask(part), colour: colourOfLabel(part.label) })),
      size: this.message.size,
      step,
      scale,
      shown: fits / scale, // the browser enlarges a canvas that isn't as large as its box
      ratio: box.ratio / (fits / scale),
    };
  }
}

