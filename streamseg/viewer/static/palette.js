// The colours of identities: the same as in the service's own pictures (streamseg/annotate.py).

export const PALETTE = [
  [0, 150, 255],
  [240, 0, 0],
  [240, 225, 0],
  [75, 240, 240],
  [135, 75, 135],
  [240, 150, 135],
  [30, 60, 255],
  [240, 90, 180],
  [0, 135, 75],
  [105, 195, 255],
  [180, 240, 165],
  [195, 180, 0],
  [180, 60, 195],
  [195, 105, 120],
  [240, 195, 105],
  [210, 135, 60],
];

const pick = (key) => PALETTE[((key % PALETTE.length) + PALETTE.length) % PALETTE.length];

// An instance has the colour of its track, or of its category where it isn't tracked.
export const colourOf = ({ track, label }) => pick(track === -1 ? label : track);

export const colourOfLabel = (label) => pick(label);

export const muted = (colour) => colour.map((part) => Math.floor((part + 2 * 128) / 3));

export const css = ([red, green, blue]) => `rgb(${red} ${green} ${blue})`;

// Dark or white, whichever is read better on the colour (luma of ITU-R BT.601).
export const inkOn = ([red, green, blue]) =>
  0.299 * red + 0.587 * green + 0.114 * blue > 110 ? "rgb(16 16 16)" : "rgb(255 255 255)";
