// Colors of tracks, equal to those of annotated images (streamseg/visualization.py).

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

const paletteColor = (key) =>
  PALETTE[((key % PALETTE.length) + PALETTE.length) % PALETTE.length];

// Return the color of the track of an instance, or of its category if it is not tracked.
export const instanceColor = ({ track, label }) => paletteColor(track === -1 ? label : track);

export const labelColor = (label) => paletteColor(label);

export const mutedColor = (color) => color.map((part) => Math.floor((part + 2 * 128) / 3));

export const css = ([red, green, blue]) => `rgb(${red} ${green} ${blue})`;

// Return dark or white, for contrast with the background (luma of ITU-R BT.601).
export const textColor = ([red, green, blue]) =>
  0.299 * red + 0.587 * green + 0.114 * blue > 110 ? "rgb(16 16 16)" : "rgb(255 255 255)";
