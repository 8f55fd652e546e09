// Grid of all tiles: tracks the visible sources, the enlarged tile and the focus.

import { Tile } from "./tile.js";

export class TileGrid {
  // `actions` are the functions for tiles, `worker` is the render worker, and `onVisibleChange` is
  // called when the visible sources may have changed.
  constructor(element, actions, worker, onVisibleChange) {
    this.element = element;
    this.actions = { ...actions, enlarge: (tile) => this.enlarge(tile.isEnlarged ? null : tile) };
    this.worker = worker;
    this.onVisibleChange = onVisibleChange;
    this.tiles = new Map();
    this.intersecting = new Set();
    this.visibilityObserver = new IntersectionObserver(
      (entries) => this.updateVisibility(entries), { rootMargin: "100px" });
    this.sizeObserver = new ResizeObserver((entries) => this.updateSizes(entries));
    document.addEventListener("visibilitychange", () => this.onVisibleChange());
  }

  update(views, roundTripMs) {
    const names = new Set(views.map(({ source }) => source));
    for (const [source, tile] of this.tiles) if (!names.has(source)) this.remove(source, tile);
    views.forEach((view, index) => {
      const tile = this.tiles.get(view.source) ?? this.add(view.source, index);
      tile.update(view, roundTripMs);
    });
  }

  // Names of the sources on the screen.
  get visibleSources() {
    return document.hidden ? [] : [...this.intersecting];
  }

  get focusedTile() {
    const element = document.activeElement?.closest("[data-source]");
    return element ? this.tiles.get(element.dataset.source) : undefined;
  }

  // The tile for keyboard shortcuts: the focused one, the enlarged one, or the first.
  get currentTile() {
    const tiles = [...this.tiles.values()];
    return this.focusedTile ?? tiles.find((tile) => tile.isEnlarged) ?? tiles[0];
  }

  enlarge(tile) {
    for (const other of this.tiles.values()) {
      if (other.isEnlarged !== (other === tile)) other.setEnlarged(other === tile);
    }
    tile?.element.scrollIntoView({ block: "nearest" });
    tile?.element.focus();
  }

  // Move the focus by an arrow key, by the position of the tiles on the screen.
  moveFocus(key) {
    const elements = [...this.element.children];
    const index = elements.indexOf(this.focusedTile?.element);
    if (index < 0) {
      elements[0]?.focus();
      return;
    }
    const offset = { ArrowLeft: -1, ArrowRight: 1 }[key];
    const next = offset
      ? elements[index + offset]
      : verticalNeighbor(elements, index, key === "ArrowDown");
    next?.focus();
  }

  add(source, index) {
    const tile = new Tile(source, this.actions);
    this.tiles.set(source, tile);
    this.element.insertBefore(tile.element, this.element.children[index] ?? null);
    const canvas = tile.canvas.transferControlToOffscreen();
    this.worker.postMessage({ kind: "open", source, canvas }, [canvas]);
    this.visibilityObserver.observe(tile.element);
    this.sizeObserver.observe(tile.canvas);
    return tile;
  }

  remove(source, tile) {
    this.visibilityObserver.unobserve(tile.element);
    this.sizeObserver.unobserve(tile.canvas);
    tile.element.remove();
    this.tiles.delete(source);
    this.intersecting.delete(source);
    this.worker.postMessage({ kind: "close", source });
    this.onVisibleChange();
  }

  updateVisibility(entries) {
    for (const { target, isIntersecting } of entries) {
      const { source } = target.dataset;
      if (isIntersecting && this.tiles.has(source)) this.intersecting.add(source);
      else this.intersecting.delete(source);
    }
    this.onVisibleChange();
  }

  updateSizes(entries) {
    const ratio = devicePixelRatio;
    for (const { target, contentRect } of entries) {
      const { source } = target.closest("[data-source]").dataset;
      const [width, height] = [contentRect.width * ratio, contentRect.height * ratio];
      if (!width || !height) continue;
      this.worker.postMessage({ kind: "resize", source, box: { width, height, ratio } });
    }
  }
}

// Return the nearest element below or above, or undefined.
function verticalNeighbor(elements, index, isBelow) {
  const current = elements[index].getBoundingClientRect();
  const distance = (element) => {
    const { left, top } = element.getBoundingClientRect();
    return Math.abs(top - current.top) * 10 + Math.abs(left - current.left);
  };
  const candidates = elements.filter((element) => {
    const { top } = element.getBoundingClientRect();
    return isBelow ? top > current.top + 1 : top < current.top - 1;
  });
  return candidates.sort((a, b) => distance(a) - distance(b))[0];
}
