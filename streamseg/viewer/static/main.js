// Entry point of the page: connects the viewer connection, the render worker, the tiles, the
// toolbar and the keyboard shortcuts.

import { ViewerConnection } from "./connection.js";
import { LAYERS, Settings } from "./settings.js";
import { TileGrid } from "./tile_grid.js";

const $ = (id) => document.getElementById(id);
const THEME_NAMES = { system: "as the system", light: "light", dark: "dark" };

const settings = new Settings();
const worker = new Worker("/render_worker.js", { type: "module" });
const connection = new ViewerConnection();
const postToWorker = (kind, tile, fields = {}) =>
  worker.postMessage({ kind, source: tile.source, ...fields });
const actions = {
  followAt: (tile, x, y) => postToWorker("followAt", tile, { x, y }),
  unfollow: (tile) => postToWorker("unfollow", tile),
  announce: (text) => ($("announcements").textContent = text),
};
const grid = new TileGrid($("tiles"), actions, worker, () =>
  connection.requestSources(grid.visibleSources));
let dashboard = null;

// Messages of the viewer

connection.addEventListener("dashboard", ({ detail }) => {
  dashboard = detail;
  grid.update(dashboard.sources, connection.roundTripMs);
  showService();
});
connection.addEventListener("frame", ({ detail }) => {
  worker.postMessage({ kind: "frame", buffer: detail }, [detail]);
});
connection.addEventListener("state", showService);

// Messages of the render worker

worker.addEventListener("message", ({ data }) => {
  const tile = grid.tiles.get(data.source);
  if (data.kind === "frameDone") connection.acknowledge(data.source);
  if (!tile) return;
  if (data.kind === "followFailed") showNotice(data.reason);
  else if (data.kind === "redrawn") tile.showFollowed(data.followed);
  else if ("renderMs" in data || "error" in data) tile.showFrameReport(data);
});
worker.addEventListener("error", ({ message }) => {
  showBanner("failed", `Pictures can't be painted: ${message ?? "this browser may be too old"}.`);
});

function showService() {
  const [state, text] = serviceState();
  document.documentElement.dataset.connection = connection.state;
  showBanner(state, text);
  $("service").textContent = dashboard ? dashboard.address : "";
  $("summary").textContent = dashboard ? summary(dashboard) : "";
  $("empty").hidden = !dashboard || dashboard.sources.length > 0;
}

// Return the state and the text of the banner; the text is empty while the service is live.
function serviceState() {
  if (connection.state !== "open" && (dashboard || connection.attempts > 0)) {
    const reason = connection.reason || "the viewer can't be reached";
    return ["silent", `Not connected: ${reason}. Trying again.`];
  }
  if (!dashboard || dashboard.state === "live") return ["live", ""];
  const reason = dashboard.reason ? `: ${dashboard.reason}` : "";
  if (dashboard.state === "connecting") return ["connecting", `Waiting for ${dashboard.address}.`];
  if (dashboard.state === "silent") return ["silent", `Out of touch${reason}. It is waited for.`];
  return [dashboard.state, `The service has ${dashboard.state}${reason}. It is waited for.`];
}

function summary({ sources, hidden }) {
  const live = sources.filter(({ state }) => state === "live").length;
  const more = hidden ? `, ${hidden} more not shown` : "";
  return `${live} of ${sources.length} live${more}`;
}

function showBanner(state, text) {
  $("banner").dataset.state = state;
  $("banner").hidden = !text;
  if ($("banner-text").textContent !== text) $("banner-text").textContent = text;
}

let noticeTimer;
function showNotice(text) {
  $("notice").textContent = text;
  $("notice").hidden = false;
  clearTimeout(noticeTimer);
  noticeTimer = setTimeout(() => ($("notice").hidden = true), 4000);
}

// Toolbar

function showSettings() {
  for (const layer of LAYERS) $(layer).setAttribute("aria-pressed", settings.layers[layer]);
  document.documentElement.dataset.theme = settings.theme;
  $("theme").setAttribute("aria-label", `theme: ${THEME_NAMES[settings.theme]}`);
  $("theme").title = `Colours: ${THEME_NAMES[settings.theme]} (t)`;
  worker.postMessage({ kind: "layers", layers: settings.layers });
}

settings.addEventListener("change", showSettings);
for (const layer of LAYERS) $(layer).addEventListener("click", () => settings.toggleLayer(layer));
$("theme").addEventListener("click", () => settings.selectNextTheme());
$("help").addEventListener("click", () => $("keys").showModal());
showSettings();

// Keyboard shortcuts

const SHORTCUTS = {
  m: () => settings.toggleLayer("masks"),
  b: () => settings.toggleLayer("boxes"),
  l: () => settings.toggleLayer("labels"),
  i: () => settings.toggleLayer("ids"),
  t: () => settings.selectNextTheme(),
  f: () => grid.currentTile && postToWorker("followNext", grid.currentTile),
  "?": () => $("keys").showModal(),
  Escape: stopFollowingOrShrink,
  ArrowLeft: () => grid.moveFocus("ArrowLeft"),
  ArrowRight: () => grid.moveFocus("ArrowRight"),
  ArrowUp: () => grid.moveFocus("ArrowUp"),
  ArrowDown: () => grid.moveFocus("ArrowDown"),
};

function stopFollowingOrShrink() {
  const following = [...grid.tiles.values()].filter((tile) => tile.followed);
  if (following.length) following.forEach((tile) => actions.unfollow(tile));
  else grid.enlarge(null);
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("keys").open) return;
  const tile = grid.focusedTile;
  if (event.key === "Enter" && tile && document.activeElement === tile.element) {
    grid.enlarge(tile.isEnlarged ? null : tile);
  } else if (Object.hasOwn(SHORTCUTS, event.key)) {
    SHORTCUTS[event.key]();
  } else {
    return;
  }
  event.preventDefault();
});
