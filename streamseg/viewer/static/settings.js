// What somebody chose: which layers are drawn, and light or dark. Remembered by the browser.

const KEY = "streamseg.viewer";
const THEMES = ["system", "light", "dark"];

export const LAYERS = ["masks", "boxes", "labels", "ids"];

export class Settings extends EventTarget {
  constructor() {
    super();
    const kept = read();
    this.layers = Object.fromEntries(LAYERS.map((name) => [name, kept[name] ?? name !== "boxes"]));
    this.theme = THEMES.includes(kept.theme) ? kept.theme : "system";
  }

  toggle(layer) {
    this.layers = { ...this.layers, [layer]: !this.layers[layer] };
    this.changed();
  }

  nextTheme() {
    this.theme = THEMES[(THEMES.indexOf(this.theme) + 1) % THEMES.length];
    this.changed();
  }

  changed() {
    try {
      localStorage.setItem(KEY, JSON.stringify({ ...this.layers, theme: this.theme }));
    } catch (error) {
      console.warn("the choice isn't remembered:", error.message); // storage is forbidden or full
    }
    this.dispatchEvent(new Event("change"));
  }
}

function read() {
  try {
    return JSON.parse(localStorage.getItem(KEY) ?? "{}") ?? {};
  } catch (error) {
    console.warn("nothing is remembered:", error.message);
    return {};
  }
}
