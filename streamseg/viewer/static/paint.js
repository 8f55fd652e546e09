// How a frame and what was found in it are drawn. Coordinates are the frame's; `scale` leads to the
// canvas, `step` to the overlay that masks are painted into.

import { colourOf, css, inkOn, muted } from "./palette.js";

const FILL = 0.5; // as in the service's own pictures
const STUFF = 0.4;
const DIMMED = 0.12;
const WIDE_ENOUGH = 520; // CSS pixels: scores are left out of smaller pictures

// Blends masks into pixels which start out transparent, and are laid over the picture at last.
export class Overlay {
  constructor() {
    this.canvas = new OffscreenCanvas(1, 1);
    this.context = this.canvas.getContext("2d");
    this.begin(1, 1);
  }

  begin(width, height) {
    if (this.image?.width === width && this.image.height === height) {
      this.words.fill(0);
      return;
    }
    [this.canvas.width, this.canvas.height] = [width, height];
    this.image = this.context.createImageData(width, height);
    this.words = new Uint32Array(this.image.data.buffer); // a pixel each
  }

  fill(mask, colour, alpha) {
    const { image: { data, width }, words } = this;
    const fresh = word(colour, alpha);
    eachPixel(mask, width, (at) => {
      if (words[at] === 0) words[at] = fresh;
      else blend(data, 4 * at, colour, alpha);
    });
  }

  // A line along the inside of the mask's edge.
  outline(mask, colour, reach) {
    const { words, image } = this;
    const { bits, width, height } = mask;
    const solid = word(colour, 1);
    eachPixel(mask, image.width, (at, x, y, own) => {
      const deep =
        x >= reach && bits[own - reach] && x + reach < width && bits[own + reach] &&
        y >= reach && bits[own - reach * width] && y + reach < height && bits[own + reach * width];
      if (!deep) words[at] = solid;
    });
  }

  layOver(context, width, height) {
    this.context.putImageData(this.image, 0, 0);
    context.drawImage(this.canvas, 0, 0, width, height);
  }
}

// Visits a mask's pixels: where each is in an overlay so wide, and in the mask.
function eachPixel({ bits, x: left, y: top, width, height }, overlayWidth, visit) {
  let own = 0;
  for (let y = 0; y < height; y++) {
    let at = (top + y) * overlayWidth + left;
    for (let x = 0; x < width; x++, own++, at++) {
      if (bits[own]) visit(at, x, y, own);
    }
  }
}

const littleEndian = new Uint8Array(new Uint32Array([1]).buffer)[0] === 1;

// A colour as one pixel of an ImageData, read as a number.
function word([red, green, blue], alpha) {
  const bytes = [red, green, blue, Math.round(255 * alpha)];
  if (!littleEndian) bytes.reverse();
  return bytes.reduce((sum, byte, at) => sum + byte * 256 ** at, 0);
}

// "Source over" in pixels whose colours aren't multiplied by their alpha.
function blend(data, at, [red, green, blue], alpha) {
  const under = (data[at + 3] / 255) * (1 - alpha);
  const sum = alpha + under;
  data[at] = (red * alpha + data[at] * under) / sum;
  data[at + 1] = (green * alpha + data[at + 1] * under) / sum;
  data[at + 2] = (blue * alpha + data[at + 2] * under) / sum;
  data[at + 3] = 255 * sum;
}

// The frame; without a picture, the dark that masks are drawn on.
export function drawPicture(context, picture, width, height) {
  if (picture) {
    context.drawImage(picture, 0, 0, width, height);
  } else {
    context.fillStyle = "rgb(20 24 31)";
    context.fillRect(0, 0, width, height);
  }
}

export function drawMasks(overlay, { objects, stuff, size, step }, followed, context) {
  const [height, width] = size;
  overlay.begin(Math.ceil(width / step), Math.ceil(height / step));
  const line = Math.max(1, Math.round(Math.min(height, width) / step / 360));
  for (const { mask, colour } of stuff) {
    overlay.fill(mask, muted(colour), followed ? DIMMED : STUFF);
  }
  for (const object of objects) {
    overlay.fill(object.mask, colourOf(object), isDimmed(object, followed) ? DIMMED : FILL);
  }
  for (const object of objects) {
    if (isDimmed(object, followed)) continue;
    overlay.outline(object.mask, colourOf(object), followed ? 2 * line : line);
  }
  overlay.layOver(context, context.canvas.width, context.canvas.height);
}

export function drawBoxes(context, { objects, scale, ratio }, followed) {
  for (const object of objects) {
    const [x1, y1, x2, y2] = object.box.map((side) => side * scale);
    context.globalAlpha = isDimmed(object, followed) ? DIMMED : 1;
    context.strokeStyle = css(colourOf(object));
    context.lineWidth = 1.5 * ratio;
    context.strokeRect(x1, y1, x2 - x1, y2 - y1);
  }
  context.globalAlpha = 1;
}

export function drawTrail(context, { scale, ratio }, follow, colour) {
  context.strokeStyle = css(colour);
  context.lineWidth = 2.5 * ratio;
  context.lineJoin = context.lineCap = "round";
  context.beginPath();
  for (const [x, y] of follow.trail) context.lineTo(x * scale, y * scale);
  context.stroke();
}

// A small filled tag at each object, inside the frame and not over another tag if it can be helped.
export function drawTags(context, { objects, scale, ratio }, layers, followed) {
  const wide = context.canvas.width / ratio; // CSS pixels
  const letters = Math.max(9.5, Math.min(12.5, wide / 52)) * ratio;
  const full = { ...layers, scores: layers.labels && wide > WIDE_ENOUGH };
  context.font = `600 ${letters}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  const placed = [];
  for (const object of objects) {
    const text = caption(object, full);
    if (!text || isDimmed(object, followed)) continue;
    const size = [context.measureText(text).width + 0.8 * letters, 1.5 * letters];
    const place = placeFor(object.box.map((side) => side * scale), size, placed, context.canvas);
    placed.push(place);
    context.fillStyle = css(colourOf(object));
    context.beginPath();
    context.roundRect(...place, 0.3 * letters);
    context.fill();
    context.fillStyle = inkOn(colourOf(object));
    context.fillText(text, place[0] + 0.4 * letters, place[1] + 0.8 * letters);
  }
}

const isDimmed = ({ track }, followed) => followed !== null && track !== followed;

function caption({ name, track, score }, { labels, ids, scores }) {
  const words = labels ? [name] : [];
  if (ids && track !== -1) words.push(`#${track}`);
  if (scores) words.push(`${Math.round(100 * score)} %`);
  return words.join("  ");
}

// Above, below, beside or inside; the first place that hides no other tag, or else hides least.
function placeFor([x1, y1, x2, y2], [width, height], placed, canvas) {
  const corners = [
    [x1, y1 - height], [x1, y2], [x2 - width, y1 - height], [x2 - width, y2],
    [x2, y1], [x1 - width, y1], [x1, y1],
  ];
  let best = null;
  for (const [x, y] of corners) {
    const place = [within(x, canvas.width - width), within(y, canvas.height - height), width, height];
    const hidden = placed.reduce((sum, other) => sum + shared(place, other), 0);
    if (!best || hidden < best.hidden) best = { place, hidden };
    if (hidden === 0) break;
  }
  return best.place;
}

const within = (value, most) => Math.max(0, Math.min(value, most));

// Pixels that two rectangles share.
function shared([ax, ay, aw, ah], [bx, by, bw, bh]) {
  const [wide, high] = [
    Math.min(ax + aw, bx + bw) - Math.max(ax, bx),
    Math.min(ay + ah, by + bh) - Math.max(ay, by),
  ];
  return Math.max(0, wide) * Math.max(0, high);
}
