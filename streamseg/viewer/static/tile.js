// Tile of one source: its image, numbers, class counts and followed track.
//
// Everything that comes from the service is inserted as text, never as HTML.

import {
  STATES, formatInView, formatMilliseconds, formatNumber, formatReasons, formatSeconds, sumCounts,
} from "./formatting.js";
import { css, instanceColor, labelColor } from "./palette.js";
import { drawSparkline } from "./sparkline.js";

const MAX_COUNT_ROWS = 3; // unless the tile is enlarged
const LOST_SECONDS = 0.5; // time without the followed track until it is shown as lost
const template = document.querySelector("#tile");

export class Tile {
  // `actions` are functions for the user's actions: enlarge, followAt, unfollow, announce.
  constructor(source, actions) {
    this.source = source;
    this.actions = actions;
    this.element = template.content.firstElementChild.cloneNode(true);
    this.element.dataset.source = source;
    this.part("name").textContent = source;
    this.canvas = this.part("image");
    this.canvas.setAttribute("aria-label", `live image of ${source}`);
    this.canvas.addEventListener("click", ({ offsetX, offsetY }) => {
      const { clientWidth, clientHeight } = this.canvas;
      actions.followAt(this, offsetX / clientWidth, offsetY / clientHeight);
    });
    this.part("enlarge").addEventListener("click", () => actions.enlarge(this));
    this.part("unfollow").addEventListener("click", () => actions.unfollow(this));
    this.followed = null;
    this.isLost = false;
    this.view = null;
    this.renderMs = 0;
    this.frameCount = 0;
  }

  part(name) {
    return this.element.querySelector(`[data-part="${name}"]`);
  }

  // Show the numbers of the source. `roundTripMs` is the round trip to the viewer.
  update(view, roundTripMs) {
    const previous = this.view;
    this.view = view;
    this.roundTripMs = roundTripMs;
    this.element.dataset.state = view.state;
    this.showState(previous);
    this.showNumbers();
    this.showCounts();
    if (this.isEnlarged) this.showDetails();
    const description = [this.source, STATES[view.state], view.reason, formatInView(view.in_view)];
    this.element.setAttribute("aria-label", description.filter(Boolean).join(", "));
  }

  showState(previous) {
    const { state, reason } = this.view;
    this.setText("state", STATES[state]);
    this.part("cover").hidden = state === "live" && this.frameCount > 0;
    this.setText("cover-state", state === "live" ? "waiting for the first frame" : STATES[state]);
    this.setText("cover-reason", reason);
    if (previous && previous.state !== state) {
      this.actions.announce(`${this.source}: ${STATES[state]}${reason ? `, ${reason}` : ""}`);
    }
  }

  showNumbers() {
    const { fps, lost, dropped, failed } = this.view;
    this.setText("fps", fps.toFixed(fps < 10 ? 1 : 0));
    this.setText("latency", formatMilliseconds(this.latencyMs));
    this.setText("dropped", formatNumber(sumCounts(dropped) + sumCounts(failed)));
    this.setText("lost", formatNumber(lost));
  }

  // Time from capture to display; unknown parts count as 0.
  get latencyMs() {
    const { age_ms: ageMs, way_ms: transitMs } = this.view;
    if (ageMs === null) return null;
    return ageMs + (transitMs ?? 0) + (this.roundTripMs ?? 0) / 2 + this.renderMs;
  }

  showCounts() {
    const list = this.part("counts");
    const { classes } = this.view;
    const visible = this.isEnlarged ? classes : classes.slice(0, MAX_COUNT_ROWS);
    while (list.children.length > visible.length) list.lastElementChild.remove();
    while (list.children.length < visible.length) list.append(createCountRow());
    visible.forEach((classView, index) => fillCountRow(list.children[index], classView));
    const hiddenCount = classes.length - visible.length;
    this.setText("more", hiddenCount > 0 ? `and ${hiddenCount} more` : "");
    this.part("nothing").hidden = classes.length > 0;
  }

  showDetails() {
    const { view, roundTripMs } = this;
    const timing = Object.entries(view.timing)
      .map(([stage, ms]) => `${stage} ${formatMilliseconds(ms)}`);
    const details = {
      model: view.model || "–",
      frame: view.size ? `${view.size[1]} × ${view.size[0]}` : "–",
      "to publication": formatPercentile(view.age_ms, view.age_p95_ms),
      "to the viewer": view.age_ms !== null && view.way_ms === null
        ? "unknown: the clocks differ"
        : formatMilliseconds(view.way_ms),
      "to this browser": formatMilliseconds(roundTripMs === null ? null : roundTripMs / 2),
      painting: formatMilliseconds(this.renderMs),
      stages: timing.join(", ") || "–",
      frames: `${formatNumber(view.decoded)} decoded, ${formatNumber(view.published)} published, ` +
        `${formatNumber(view.in_flight)} on their way`,
      dropped: formatReasons(view.dropped) || "none",
      failed: formatReasons(view.failed) || "none",
      reconnections: formatNumber(view.epoch),
    };
    this.part("details").replaceChildren(
      ...Object.entries(details).flatMap(([term, text]) => [
        createTextElement("dt", term),
        createTextElement("dd", text),
      ]),
    );
  }

  // Show the report of the render worker about a frame.
  showFrameReport({ error, renderMs, hasImage, followed }) {
    const noImage = hasImage ? "" : "no image: masks only";
    this.setText("warning", error ? `this frame can't be shown: ${error}` : noImage);
    if (error) return;
    this.frameCount += 1;
    if (this.frameCount === 1 && this.view?.state === "live") this.part("cover").hidden = true;
    this.renderMs = this.renderMs ? 0.9 * this.renderMs + 0.1 * renderMs : renderMs;
    this.showFollowed(followed);
  }

  showFollowed(followed) {
    const chip = this.part("followed");
    chip.hidden = !followed;
    if (!followed) {
      [this.followed, this.isLost] = [null, false];
      return;
    }
    const isLost = followed.lostSeconds > LOST_SECONDS;
    const title = `${followed.name} #${followed.track}`;
    this.setText("followed-title", title);
    this.setText("followed-status", formatFollowedStatus(followed, isLost));
    chip.classList.toggle("lost", isLost);
    chip.style.setProperty("--track-color", css(instanceColor(followed)));
    if (this.followed?.track !== followed.track) this.actions.announce(`following ${title}`);
    else if (isLost !== this.isLost) this.actions.announce(`${title} is ${isLost ? "lost" : "back"}`);
    [this.followed, this.isLost] = [followed, isLost];
  }

  get isEnlarged() {
    return this.element.classList.contains("enlarged");
  }

  setEnlarged(isEnlarged) {
    this.element.classList.toggle("enlarged", isEnlarged);
    const button = this.part("enlarge");
    button.setAttribute("aria-pressed", isEnlarged);
    button.setAttribute("aria-label", `${isEnlarged ? "shrink" : "enlarge"} ${this.source}`);
    if (this.view) this.update(this.view, this.roundTripMs);
  }

  setText(name, text) {
    const element = this.part(name);
    if (element.textContent !== text) element.textContent = text;
  }
}

function formatFollowedStatus({ secondsInView, lostSeconds, isDisconnected }, isLost) {
  if (isDisconnected) return "lost: the source reconnected";
  if (isLost) return `lost for ${formatSeconds(lostSeconds)}`;
  return `in view for ${formatSeconds(secondsInView)}`;
}

function formatPercentile(medianMs, p95Ms) {
  if (medianMs === null) return "–";
  return `${formatMilliseconds(medianMs)}, 95 % within ${formatMilliseconds(p95Ms)}`;
}

function createCountRow() {
  const row = document.createElement("li");
  const swatch = createTextElement("span", "");
  swatch.className = "swatch";
  const sparkline = document.createElement("canvas");
  sparkline.setAttribute("aria-hidden", "true");
  row.append(swatch, createTextElement("span", ""), sparkline, createTextElement("b", ""));
  return row;
}

function fillCountRow(row, { name, label, now, history }) {
  const [swatch, title, sparkline, count] = row.children;
  const color = css(labelColor(label));
  swatch.style.backgroundColor = color;
  title.textContent = name;
  title.title = name;
  count.textContent = formatNumber(now);
  drawSparkline(sparkline, history, color);
}

function createTextElement(tag, text) {
  const element = document.createElement(tag);
  element.textContent = text;
  return element;
}
