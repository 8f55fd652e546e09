// Drawing of a frame and its instances. Coordinates are those of the frame; `scale` converts them to
// canvas pixels, and masks are drawn into an overlay that has every `step`-th pixel of the frame.

import { css, instanceColor, mutedColor, textColor } from "./palette.js";

const MASK_ALPHA = 0.5; // as in the annotated images of the service
const STUFF_ALPHA = 0.4;
const DIMMED_ALPHA = 0.12;
const MIN_WIDTH_FOR_SCORES = 520; // in CSS pixels

// Transparent image into which masks are blended before it is drawn over the frame.
export class Overlay {
  constructor() {
    this.canvas = new OffscreenCanvas(1, 1);
    this.context = this.canvas.getContext("2d");
    this.clear(1, 1);
  }

  clear(width, height) {
    if (this.image?.width === width && this.image.height === height) {
      this.pixels.fill(0);
      return;
    }
    [this.canvas.width, this.canvas.height] = [width, height];
    this.image = this.context.createImageData(width, height);
    this.pixels = new Uint32Array(this.image.data.buffer); // one RGBA pixel per element
  }

  fill(mask, color, alpha) {
    const { image: { data, width }, pixels } = this;
    const packed = packPixel(color, alpha);
    forEachPixel(mask, width, (index) => {
      if (pixels[index] === 0) pixels[index] = packed;
      else blendPixel(data, 4 * index, color, alpha);
    });
  }

  // Draw a line along the inside of the mask border.
  outline(mask, color, lineWidth) {
    const { pixels, image } = this;
    const { bits, width, height } = mask;
    const packed = packPixel(color, 1);
    forEachPixel(mask, image.width, (index, x, y, bit) => {
      const isInterior =
        x >= lineWidth && bits[bit - lineWidth] &&
        x + lineWidth < width && bits[bit + lineWidth] &&
        y >= lineWidth && bits[bit - lineWidth * width] &&
        y + lineWidth < height && bits[bit + lineWidth * width];
      if (!isInterior) pixels[index] = packed;
    });
  }

  drawOn(context, width, height) {
    this.context.putImageData(this.image, 0, 0);
    context.drawImage(this.canvas, 0, 0, width, height);
  }
}

// Call visit(index in the overlay, x, y, index in the mask) for each pixel of a mask.
function forEachPixel({ bits, x: left, y: top, width, height }, overlayWidth, visit) {
  let bit = 0;
  for (let y = 0; y < height; y++) {
    let index = (top + y) * overlayWidth + left;
    for (let x = 0; x < width; x++, bit++, index++) {
      if (bits[bit]) visit(index, x, y, bit);
    }
  }
}

const isLittleEndian = new Uint8Array(new Uint32Array([1]).buffer)[0] === 1;

// Return an RGBA pixel of ImageData as one 32-bit number.
function packPixel([red, green, blue], alpha) {
  const bytes = [red, green, blue, Math.round(255 * alpha)];
  if (!isLittleEndian) bytes.reverse();
  return bytes.reduce((sum, byte, position) => sum + byte * 256 ** position, 0);
}

// Blend a color over a pixel ("source over", alpha not premultiplied).
function blendPixel(data, offset, [red, green, blue], alpha) {
  const background = (data[offset + 3] / 255) * (1 - alpha);
  const total = alpha + background;
  data[offset] = (red * alpha + data[offset] * background) / total;
  data[offset + 1] = (green * alpha + data[offset + 1] * background) / total;
  data[offset + 2] = (blue * alpha + data[offset + 2] * background) / total;
  data[offset + 3] = 255 * total;
}

// Draw the image of the frame, or a dark background if there is none.
export function drawImage(context, image, width, height) {
  if (image) {
    context.drawImage(image, 0, 0, width, height);
  } else {
    context.fillStyle = "rgb(20 24 31)";
    context.fillRect(0, 0, width, height);
  }
}

export function drawMasks(overlay, { instances, stuff, size, step }, followedTrack, context) {
  const [height, width] = size;
  overlay.clear(Math.ceil(width / step), Math.ceil(height / step));
  const lineWidth = Math.max(1, Math.round(Math.min(height, width) / step / 360));
  for (const { mask, color } of stuff) {
    overlay.fill(mask, mutedColor(color), followedTrack ? DIMMED_ALPHA : STUFF_ALPHA);
  }
  for (const instance of instances) {
    const alpha = isDimmed(instance, followedTrack) ? DIMMED_ALPHA : MASK_ALPHA;
    overlay.fill(instance.mask, instanceColor(instance), alpha);
  }
  for (const instance of instances) {
    if (isDimmed(instance, followedTrack)) continue;
    const instanceLineWidth = followedTrack ? 2 * lineWidth : lineWidth;
    overlay.outline(instance.mask, instanceColor(instance), instanceLineWidth);
  }
  overlay.drawOn(context, context.canvas.width, context.canvas.height);
}

export function drawBoxes(context, { instances, scale, ratio }, followedTrack) {
  for (const instance of instances) {
    const [x1, y1, x2, y2] = instance.box.map((bound) => bound * scale);
    context.globalAlpha = isDimmed(instance, followedTrack) ? DIMMED_ALPHA : 1;
    context.strokeStyle = css(instanceColor(instance));
    context.lineWidth = 1.5 * ratio;
    context.strokeRect(x1, y1, x2 - x1, y2 - y1);
  }
  context.globalAlpha = 1;
}

export function drawTrail(context, { scale, ratio }, trail, color) {
  context.strokeStyle = css(color);
  context.lineWidth = 2.5 * ratio;
  context.lineJoin = context.lineCap = "round";
  context.beginPath();
  for (const [x, y] of trail) context.lineTo(x * scale, y * scale);
  context.stroke();
}

// Draw a label with a filled background at each instance, inside the frame.
export function drawLabels(context, { instances, scale, ratio }, layers, followedTrack) {
  const cssWidth = context.canvas.width / ratio;
  const fontSize = Math.max(9.5, Math.min(12.5, cssWidth / 52)) * ratio;
  const parts = { ...layers, scores: layers.labels && cssWidth > MIN_WIDTH_FOR_SCORES };
  context.font = `600 ${fontSize}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  const placed = [];
  for (const instance of instances) {
    const text = labelText(instance, parts);
    if (!text || isDimmed(instance, followedTrack)) continue;
    const box = instance.box.map((bound) => bound * scale);
    const extent = [context.measureText(text).width + 0.8 * fontSize, 1.5 * fontSize];
    const rectangle = labelRectangle(box, extent, placed, context.canvas);
    placed.push(rectangle);
    const color = instanceColor(instance);
    context.fillStyle = css(color);
    context.beginPath();
    context.roundRect(...rectangle, 0.3 * fontSize);
    context.fill();
    context.fillStyle = textColor(color);
    context.fillText(text, rectangle[0] + 0.4 * fontSize, rectangle[1] + 0.8 * fontSize);
  }
}

const isDimmed = ({ track }, followedTrack) => followedTrack !== null && track !== followedTrack;

function labelText({ name, track, score }, { labels, ids, scores }) {
  const parts = labels ? [name] : [];
  if (ids && track !== -1) parts.push(`#${track}`);
  if (scores) parts.push(`${Math.round(100 * score)} %`);
  return parts.join("  ");
}

// Return [x, y, width, height]: above, below, at the sides of or inside the box. The first position
// that covers no other label is used, or the one that covers the fewest pixels of other labels.
function labelRectangle([x1, y1, x2, y2], [width, height], placed, canvas) {
  const corners = [
    [x1, y1 - height], [x1, y2], [x2 - width, y1 - height], [x2 - width, y2],
    [x2, y1], [x1 - width, y1], [x1, y1],
  ];
  let best = null;
  for (const [x, y] of corners) {
    const left = clamp(x, canvas.width - width);
    const top = clamp(y, canvas.height - height);
    const rectangle = [left, top, width, height];
    const covered = placed.reduce((sum, other) => sum + intersectionArea(rectangle, other), 0);
    if (!best || covered < best.covered) best = { rectangle, covered };
    if (covered === 0) break;
  }
  return best.rectangle;
}

const clamp = (value, max) => Math.max(0, Math.min(value, max));

function intersectionArea([ax, ay, aWidth, aHeight], [bx, by, bWidth, bHeight]) {
  const width = Math.min(ax + aWidth, bx + bWidth) - Math.max(ax, bx);
  const height = Math.min(ay + aHeight, by + bHeight) - Math.max(ay, by);
  return Math.max(0, width) * Math.max(0, height);
}
