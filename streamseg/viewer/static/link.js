// The WebSocket to the viewer, which is opened again for ever.
//
// Events: "board" (everything but the pictures), "frame" (an ArrayBuffer), "state".

const FIRST_WAIT = 0.5; // seconds, doubled each time up to
const LONGEST_WAIT = 10;
const PING_EVERY = 2;
const DEAF_AFTER = 8; // seconds without anything, though the board comes every second

export class Link extends EventTarget {
  constructor() {
    super();
    this.state = "opening"; // then "open" or "waiting"
    this.reason = "";
    this.tripMs = null; // there and back
    this.looks = [];
    this.tries = 0;
    this.heardAt = performance.now();
    setInterval(() => this.check(), PING_EVERY * 1000);
    this.open();
  }

  // Show these sources from now on.
  look(sources) {
    this.looks = sources;
    this.say({ kind: "look", sources });
  }

  // A picture of the source has been dealt with: the next may come.
  seen(source) {
    this.say({ kind: "seen", source });
  }

  say(message) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }

  open() {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    this.become("opening", this.reason);
    this.heardAt = performance.now();
    this.socket = new WebSocket(`${scheme}://${location.host}/live`);
    this.socket.binaryType = "arraybuffer";
    this.socket.onopen = () => {
      this.become("open", "");
      this.look(this.looks);
    };
    this.socket.onmessage = ({ data }) => this.hear(data);
    this.socket.onclose = ({ reason }) => this.wait(reason);
  }

  hear(data) {
    this.heardAt = performance.now();
    if (typeof data !== "string") {
      this.dispatchEvent(new CustomEvent("frame", { detail: data }));
      return;
    }
    const message = JSON.parse(data);
    if (message.kind === "pong") {
      this.tripMs = performance.now() - message.at;
    } else {
      this.tries = 0;
      this.dispatchEvent(new CustomEvent("board", { detail: message }));
    }
  }

  wait(reason) {
    const jitter = 0.75 + Math.random() / 2;
    const seconds = Math.min(LONGEST_WAIT, FIRST_WAIT * 2 ** this.tries++) * jitter;
    this.become("waiting", reason);
    setTimeout(() => this.open(), seconds * 1000);
  }

  check() {
    const silentFor = (performance.now() - this.heardAt) / 1000;
    if (this.state !== "waiting" && silentFor > DEAF_AFTER) {
      this.socket.onclose = null;
      this.socket.close();
      this.wait("nothing came any more");
    } else {
      this.say({ kind: "ping", at: performance.now() });
    }
  }

  become(state, reason) {
    [this.state, this.reason] = [state, reason];
    this.dispatchEvent(new Event("state"));
  }
}
