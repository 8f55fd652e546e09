// All tiles: which there are, which are looked at, which is enlarged, and who has the focus.

import { Tile } from "./tile.js";

export class Wall {
  // `act` is what tiles ask for; `painter` the worker; `looked` is called when other tiles are seen.
  constructor(element, act, painter, looked) {
    this.element = element;
    this.act = { ...act, enlarge: (tile) => this.enlarge(tile.isEnlarged ? null : tile) };
    this.painter = painter;
    this.looked = looked;
    this.tiles = new Map();
    this.visible = new Set();
    this.seer = new IntersectionObserver((entries) => this.see(entries), { rootMargin: "100px" });
    this.ruler = new ResizeObserver((entries) => this.measure(entries));
    document.addEventListener("visibilitychange", () => this.looked());
  }

  show(views, tripMs) {
    const names = new Set(views.map(({ source }) => source));
    for (const [source, tile] of this.tiles) if (!names.has(source)) this.remove(source, tile);
    views.forEach((view, at) => {
      const tile = this.tiles.get(view.source) ?? this.add(view.source, at);
      tile.show(view, tripMs);
    });
  }

  // The sources that somebody sees now.
  get seen() {
    return document.hidden ? [] : [...this.visible];
  }

  get focused() {
    const element = document.activeElement?.closest("[data-source]");
    return element ? this.tiles.get(element.dataset.source) : undefined;
  }

  get enlarged() {
    return [...this.tiles.values()].find((tile) => tile.isEnlarged);
  }

  // Where keys go that are for one tile.
  get current() {
    return this.focused ?? this.enlarged ?? this.tiles.values().next().value;
  }

  enlarge(tile) {
    for (const other of this.tiles.values()) {
      if (other.isEnlarged !== (other === tile)) other.enlarge(other === tile);
    }
    tile?.element.scrollIntoView({ block: "nearest" });
    tile?.element.focus();
  }

  // Move the focus by arrow keys, as the tiles lie on the page.
  move(key) {
    const elements = [...this.element.children];
    const at = elements.indexOf(this.focused?.element);
    if (at < 0) {
      elements[0]?.focus();
      return;
    }
    const sideways = { ArrowLeft: -1, ArrowRight: 1 }[key];
    const next = sideways ? elements[at + sideways] : neighbour(elements, at, key === "ArrowDown");
    next?.focus();
  }

  add(source, at) {
    const tile = new Tile(source, this.act);
    this.tiles.set(source, tile);
    this.element.insertBefore(tile.element, this.element.children[at] ?? null);
    const canvas = tile.canvas.transferControlToOffscreen();
    this.painter.postMessage({ kind: "open", source, canvas }, [canvas]);
    this.seer.observe(tile.element);
    this.ruler.observe(tile.canvas);
    return tile;
  }

  remove(source, tile) {
    this.seer.unobserve(tile.element);
    this.ruler.unobserve(tile.canvas);
    tile.element.remove();
    this.tiles.delete(source);
    this.visible.delete(source);
    this.painter.postMessage({ kind: "close", source });
    this.looked();
  }

  see(entries) {
    for (const { target, isIntersecting } of entries) {
      const { source } = target.dataset;
      if (isIntersecting && this.tiles.has(source)) this.visible.add(source);
      else this.visible.delete(source);
    }
    this.looked();
  }

  measure(entries) {
    const ratio = devicePixelRatio;
    for (const { target, contentRect } of entries) {
      const { source } = target.closest("[data-source]").dataset;
      const [width, height] = [contentRect.width * ratio, contentRect.height * ratio];
      if (!width || !height) continue;
      this.painter.postMessage({ kind: "fit", source, box: { width, height, ratio } });
    }
  }
}

// The tile below, or above, that lies nearest.
function neighbour(elements, at, below) {
  const own = elements[at].getBoundingClientRect();
  const away = (element) => {
    const { left, top } = element.getBoundingClientRect();
    return Math.abs(top - own.top) * 10 + Math.abs(left - own.left);
  };
  const others = elements.filter((element) => {
    const { top } = element.getBoundingClientRect();
    return below ? top > own.top + 1 : top < own.top - 1;
  });
  return others.sort((one, other) => away(one) - away(other))[0];
}
