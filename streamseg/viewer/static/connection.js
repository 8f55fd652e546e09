// WebSocket connection to the viewer, reopened after each disconnection.
//
// Events: "dashboard" (detail: the message with all numbers), "frame" (detail: an ArrayBuffer) and
// "state" (the state of the connection has changed).

const MIN_RETRY_SECONDS = 0.5; // doubled at each attempt
const MAX_RETRY_SECONDS = 10;
const PING_SECONDS = 2;
const SILENCE_SECONDS = 8; // the viewer sends a message every second

export class ViewerConnection extends EventTarget {
  constructor() {
    super();
    this.state = "opening"; // "opening", "open" or "waiting"
    this.reason = "";
    this.roundTripMs = null;
    this.visibleSources = [];
    this.attempts = 0;
    this.lastMessageAt = performance.now();
    setInterval(() => this.checkSilence(), PING_SECONDS * 1000);
    this.open();
  }

  // Request the frames of these sources, and of no others.
  requestSources(sources) {
    this.visibleSources = sources;
    this.send({ kind: "look", sources });
  }

  // Acknowledge a frame of the source, so that the viewer sends the next one.
  acknowledge(source) {
    this.send({ kind: "seen", source });
  }

  send(message) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }

  open() {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    this.setState("opening", this.reason);
    this.lastMessageAt = performance.now();
    this.socket = new WebSocket(`${scheme}://${location.host}/live`);
    this.socket.binaryType = "arraybuffer";
    this.socket.onopen = () => {
      this.setState("open", "");
      this.requestSources(this.visibleSources);
    };
    this.socket.onmessage = ({ data }) => this.receive(data);
    this.socket.onclose = ({ reason }) => this.scheduleRetry(reason);
  }

  receive(data) {
    this.lastMessageAt = performance.now();
    if (typeof data !== "string") {
      this.dispatchEvent(new CustomEvent("frame", { detail: data }));
      return;
    }
    const message = JSON.parse(data);
    if (message.kind === "pong") {
      this.roundTripMs = performance.now() - message.at;
    } else {
      this.attempts = 0;
      this.dispatchEvent(new CustomEvent("dashboard", { detail: message }));
    }
  }

  scheduleRetry(reason) {
    const jitter = 0.75 + Math.random() / 2;
    const seconds = Math.min(MAX_RETRY_SECONDS, MIN_RETRY_SECONDS * 2 ** this.attempts++) * jitter;
    this.setState("waiting", reason);
    setTimeout(() => this.open(), seconds * 1000);
  }

  checkSilence() {
    const silentSeconds = (performance.now() - this.lastMessageAt) / 1000;
    if (this.state !== "waiting" && silentSeconds > SILENCE_SECONDS) {
      this.socket.onclose = null;
      this.socket.close();
      this.scheduleRetry("nothing came any more");
    } else {
      this.send({ kind: "ping", at: performance.now() });
    }
  }

  setState(state, reason) {
    [this.state, this.reason] = [state, reason];
    this.dispatchEvent(new Event("state"));
  }
}
