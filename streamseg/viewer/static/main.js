// The page: puts together the link to the viewer, the painter, the tiles, the switches and the keys.

import { Link } from "./link.js";
import { LAYERS, Settings } from "./settings.js";
import { Wall } from "./wall.js";

const $ = (id) => document.getElementById(id);
const THEME_NAMES = { system: "as the system", light: "light", dark: "dark" };

const settings = new Settings();
const painter = new Worker("/painter.js", { type: "module" });
const link = new Link();
const tell = (kind, tile, more = {}) => painter.postMessage({ kind, source: tile.source, ...more });
const act = {
  followAt: (tile, x, y) => tell("followAt", tile, { x, y }),
  unfollow: (tile) => tell("unfollow", tile),
  announce: (text) => ($("announcements").textContent = text),
};
const wall = new Wall($("wall"), act, painter, () => link.look(wall.seen));
let board = null;

// What comes from the viewer

link.addEventListener("board", ({ detail }) => {
  board = detail;
  wall.show(board.sources, link.tripMs);
  showService();
});
link.addEventListener("frame", ({ detail }) => {
  painter.postMessage({ kind: "frame", buffer: detail }, [detail]);
});
link.addEventListener("state", showService);

// What comes from the painter

painter.addEventListener("message", ({ data }) => {
  const tile = wall.tiles.get(data.source);
  if (data.kind === "painted") link.seen(data.source);
  if (!tile) return;
  if (data.kind === "refused") notice(data.why);
  else if (data.kind === "repainted") tile.showFollow(data.follow);
  else if ("took" in data || "failed" in data) tile.showPainted(data);
});
painter.addEventListener("error", ({ message }) => {
  showBanner("failed", `Pictures can't be painted: ${message ?? "this browser may be too old"}.`);
});

function showService() {
  const [state, text] = serviceNow();
  document.documentElement.dataset.link = link.state;
  showBanner(state, text);
  $("service").textContent = board ? board.address : "";
  $("summary").textContent = board ? summary(board) : "";
  $("empty").hidden = !board || board.sources.length > 0;
}

// What keeps the page from being live, in words; empty if nothing does.
function serviceNow() {
  if (link.state !== "open" && (board || link.tries > 0)) {
    const why = link.reason || "the viewer can't be reached";
    return ["silent", `Not connected: ${why}. Trying again.`];
  }
  if (!board || board.state === "live") return ["live", ""];
  const reason = board.reason ? `: ${board.reason}` : "";
  if (board.state === "connecting") return ["connecting", `Waiting for ${board.address}.`];
  if (board.state === "silent") return ["silent", `Out of touch${reason}. It is waited for.`];
  return [board.state, `The service has ${board.state}${reason}. It is waited for.`];
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
function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = false;
  clearTimeout(noticeTimer);
  noticeTimer = setTimeout(() => ($("notice").hidden = true), 4000);
}

// Switches

function showSettings() {
  for (const layer of LAYERS) $(layer).setAttribute("aria-pressed", settings.layers[layer]);
  document.documentElement.dataset.theme = settings.theme;
  $("theme").setAttribute("aria-label", `colours: ${THEME_NAMES[settings.theme]}`);
  $("theme").title = `Colours: ${THEME_NAMES[settings.theme]} (t)`;
  painter.postMessage({ kind: "layers", layers: settings.layers });
}

settings.addEventListener("change", showSettings);
for (const layer of LAYERS) $(layer).addEventListener("click", () => settings.toggle(layer));
$("theme").addEventListener("click", () => settings.nextTheme());
$("help").addEventListener("click", () => $("keys").showModal());
showSettings();

// Keys

const KEYS = {
  m: () => settings.toggle("masks"),
  b: () => settings.toggle("boxes"),
  l: () => settings.toggle("labels"),
  i: () => settings.toggle("ids"),
  t: () => settings.nextTheme(),
  f: () => wall.current && tell("followNext", wall.current),
  "?": () => $("keys").showModal(),
  Escape: leave,
  ArrowLeft: () => wall.move("ArrowLeft"),
  ArrowRight: () => wall.move("ArrowRight"),
  ArrowUp: () => wall.move("ArrowUp"),
  ArrowDown: () => wall.move("ArrowDown"),
};

// Esc ends what was begun last: following first, then enlarging.
function leave() {
  const following = [...wall.tiles.values()].filter((tile) => tile.follow);
  if (following.length) following.forEach((tile) => act.unfollow(tile));
  else wall.enlarge(null);
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("keys").open) return;
  const onTile = wall.focused && document.activeElement === wall.focused.element;
  if (event.key === "Enter" && onTile) {
    wall.enlarge(wall.focused.isEnlarged ? null : wall.focused);
  } else if (Object.hasOwn(KEYS, event.key)) {
    KEYS[event.key]();
  } else {
    return;
  }
  event.preventDefault();
});
