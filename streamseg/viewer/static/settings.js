// Settings of the user: visible layers and theme, stored in the browser.

const STORAGE_KEY = "streamseg.viewer";
const THEMES = ["system", "light", "dark"];

export const LAYERS = ["masks", "boxes", "labels", "ids"];

export class Settings extends EventTarget {
  constructor() {
    super();
    const stored = readStored();
    this.layers = Object.fromEntries(LAYERS.map((name) => [name, stored[name] ?? name !== "boxes"]));
    this.theme = THEMES.includes(stored.theme) ? stored.theme : "system";
  }

  toggleLayer(layer) {
    this.layers = { ...this.layers, [layer]: !this.layers[layer] };
    this.save();
  }

  selectNextTheme() {
    this.theme = THEMES[(THEMES.indexOf(this.theme) + 1) % THEMES.length];
    this.save();
  }

  save() {
    try {
      localStorage.setItem(STORAGE_KEY, JSON.stringify({ ...this.layers, theme: this.theme }));
    } catch (error) {
      console.warn("settings can't be stored:", error.message); // storage is forbidden or full
    }
    this.dispatchEvent(new Event("change"));
  }
}

function readStored() {
  try {
    return JSON.parse(localStorage.getItem(STORAGE_KEY) ?? "{}") ?? {};
  } catch (error) {
    console.warn("stored settings can't be read:", error.message);
    return {};
  }
}
