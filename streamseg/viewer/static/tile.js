// One source on the page: its picture, its numbers, its counts, and who is followed in it.
//
// Whatever comes from the service is put in as text, never as HTML.

import { colourOf, colourOfLabel, css } from "./palette.js";
import { drawSpark } from "./spark.js";
import { STATES, inView, milliseconds, number, reasons, seconds, sum } from "./words.js";

const ROWS = 3; // of counts, unless enlarged
const LOST_AFTER = 0.5; // seconds out of sight
const template = document.querySelector("#tile");

export class Tile {
  // `act` takes what somebody did: enlarge, followAt, unfollow, announce.
  constructor(source, act) {
    this.source = source;
    this.act = act;
    this.element = template.content.firstElementChild.cloneNode(true);
    this.element.dataset.source = source;
    this.part("name").textContent = source;
    this.canvas = this.part("picture");
    this.canvas.setAttribute("aria-label", `live picture of ${source}`);
    this.canvas.addEventListener("click", (event) => this.click(event));
    this.part("enlarge").addEventListener("click", () => act.enlarge(this));
    this.part("unfollow").addEventListener("click", () => act.unfollow(this));
    this.follow = null;
    this.lost = false;
    this.view = null;
    this.tookMs = 0;
    this.painted = 0;
  }

  part(name) {
    return this.element.querySelector(`[data-part="${name}"]`);
  }

  click({ offsetX, offsetY }) {
    this.act.followAt(this, offsetX / this.canvas.clientWidth, offsetY / this.canvas.clientHeight);
  }

  // Show the latest numbers. `tripMs` is the way to the viewer and back.
  show(view, tripMs) {
    const before = this.view;
    this.view = view;
    this.tripMs = tripMs;
    this.element.dataset.state = view.state;
    this.showState(before);
    this.showNumbers();
    this.showCounts();
    if (this.isEnlarged) this.showDetails();
    const said = [this.source, STATES[view.state], view.reason, inView(view.in_view)];
    this.element.setAttribute("aria-label", said.filter(Boolean).join(", "));
  }

  showState(before) {
    const { state, reason } = this.view;
    this.write("state", STATES[state]);
    this.part("veil").hidden = state === "live" && this.painted > 0;
    this.write("veil-state", state === "live" ? "waiting for the first frame" : STATES[state]);
    this.write("veil-reason", reason);
    if (before && before.state !== state) {
      this.act.announce(`${this.source}: ${STATES[state]}${reason ? `, ${reason}` : ""}`);
    }
  }

  showNumbers() {
    const { fps, lost, dropped, failed } = this.view;
    this.write("fps", fps.toFixed(fps < 10 ? 1 : 0));
    this.write("latency", milliseconds(this.latencyMs));
    this.write("dropped", number(sum(dropped) + sum(failed)));
    this.write("lost", number(lost));
  }

  // From the camera's frame to the screen, as far as it is known.
  get latencyMs() {
    const { age_ms: age, way_ms: way } = this.view;
    return age === null ? null : age + (way ?? 0) + (this.tripMs ?? 0) / 2 + this.tookMs;
  }

  showCounts() {
    const list = this.part("counts");
    const { classes } = this.view;
    const shown = this.isEnlarged ? classes : classes.slice(0, ROWS);
    while (list.children.length > shown.length) list.lastElementChild.remove();
    while (list.children.length < shown.length) list.append(countRow());
    shown.forEach((one, at) => fillCountRow(list.children[at], one));
    const more = classes.length - shown.length;
    this.write("more", more > 0 ? `and ${more} more` : "");
    this.part("nothing").hidden = classes.length > 0;
  }

  showDetails() {
    const { view } = this;
    const timing = Object.entries(view.timing).map(([stage, ms]) => `${stage} ${milliseconds(ms)}`);
    const rows = {
      model: view.model || "–",
      frame: view.size ? `${view.size[1]} × ${view.size[0]}` : "–",
      "to publication": within(view.age_ms, view.age_p95_ms),
      "to the viewer": view.age_ms !== null && view.way_ms === null
        ? "unknown: the clocks differ"
        : milliseconds(view.way_ms),
      "to this browser": milliseconds(this.tripMs === null ? null : this.tripMs / 2),
      painting: milliseconds(this.tookMs),
      stages: timing.join(", ") || "–",
      frames: `${number(view.decoded)} decoded, ${number(view.published)} published, ` +
        `${number(view.in_flight)} on their way`,
      dropped: reasons(view.dropped) || "none",
      failed: reasons(view.failed) || "none",
      reconnections: number(view.epoch),
    };
    const list = this.part("details");
    list.replaceChildren(...Object.entries(rows).flatMap(([term, said]) => [
      textElement("dt", term),
      textElement("dd", said),
    ]));
  }

  // What the painter did.
  showPainted({ failed, took, pictured, follow }) {
    this.write("trouble", failed ? `this frame can't be shown: ${failed}` : pictured ? "" : "no picture: masks only");
    if (failed) return;
    this.painted += 1;
    if (this.painted === 1 && this.view?.state === "live") this.part("veil").hidden = true;
    this.tookMs = this.tookMs ? 0.9 * this.tookMs + 0.1 * took : took;
    this.showFollow(follow);
  }


  showFollow(follow) {
    const chip = this.part("followed");
    chip.hidden = !follow;
    if (!follow) {
      [this.follow, this.lost] = [null, false];
      return;
    }
    const lost = follow.lostFor > LOST_AFTER;
    const who = `${follow.name} #${follow.track}`;
    this.write("followed-who", who);
    this.write("followed-how", howItIs(follow, lost));
    chip.classList.toggle("lost", lost);
    chip.style.setProperty("--colour", css(colourOf(follow)));
    if (this.follow?.track !== follow.track) this.act.announce(`following ${who}`);
    else if (lost !== this.lost) this.act.announce(lost ? `${who} is lost` : `${who} is back`);
    [this.follow, this.lost] = [follow, lost];
  }

  get isEnlarged() {
    return this.element.classList.contains("enlarged");
  }

  enlarge(enlarged) {
    this.element.classList.toggle("enlarged", enlarged);
    const button = this.part("enlarge");
    button.setAttribute("aria-pressed", enlarged);
    button.setAttribute("aria-label", `${enlarged ? "shrink" : "enlarge"} ${this.source}`);
    if (this.view) this.show(this.view, this.tripMs);
  }

  write(name, text) {
    const element = this.part(name);
    if (element.textContent !== text) element.textContent = text;
  }
}

function howItIs({ inView: time, lostFor, crossed }, lost) {
  if (crossed) return "lost: the source began anew";
  return lost ? `lost for ${seconds(lostFor)}` : `in view for ${seconds(time)}`;
}

const within = (usual, most) =>
  usual === null ? "–" : `${milliseconds(usual)}, 95 % within ${milliseconds(most)}`;

function countRow() {
  const row = document.createElement("li");
  const swatch = textElement("span", "");
  swatch.className = "swatch";
  row.append(swatch, textElement("span", ""), document.createElement("canvas"), textElement("b", ""));
  return row;
}

function fillCountRow(row, { name, label, now, history }) {
  const [swatch, title, spark, count] = row.children;
  const colour = css(colourOfLabel(label));
  swatch.style.backgroundColor = colour;
  title.textContent = name;
  title.title = name;
  count.textContent = number(now);
  spark.setAttribute("aria-hidden", "true");
  drawSpark(spark, history, colour);
}

function textElement(kind, text) {
  const element = document.createElement(kind);
  element.textContent = text;
  return element;
}
