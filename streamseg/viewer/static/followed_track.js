// The track that the user follows: its trail, its time in view, and whether it is lost.

const MAX_TRAIL_POINTS = 240;
const MEMORY_SECONDS = 5; // a track that is absent for longer starts a new time in view

// First and last pts of each track of a source, in seconds.
export class TrackTimes {
  constructor() {
    this.times = new Map();
    this.connection = "";
  }

  add(message) {
    const connection = connectionOf(message);
    if (connection !== this.connection) this.times.clear(); // track ids are not comparable
    this.connection = connection;
    for (const { track } of message.instances) {
      if (track === -1) continue;
      const first = this.times.get(track)?.first ?? message.pts;
      this.times.set(track, { first, last: message.pts });
    }
    for (const [track, { last }] of this.times) {
      if (Math.abs(message.pts - last) > MEMORY_SECONDS) this.times.delete(track);
    }
  }

  firstSeen(track) {
    return this.times.get(track)?.first;
  }
}

export class FollowedTrack {
  constructor({ track, name }, message, firstSeen) {
    this.track = track;
    this.name = name;
    this.trail = [];
    this.connection = connectionOf(message);
    this.firstSeen = firstSeen ?? message.pts;
    this.lastSeen = message.pts;
    this.lostSeconds = 0;
    this.isDisconnected = false;
  }

  // Update with the message of the next frame.
  update(message) {
    this.isDisconnected = connectionOf(message) !== this.connection;
    const instance = this.isDisconnected
      ? undefined
      : message.instances.find(({ track }) => track === this.track);
    if (instance) {
      this.lastSeen = message.pts;
      this.trail.push(bottomCenter(instance.box));
      if (this.trail.length > MAX_TRAIL_POINTS) this.trail.shift();
    }
    this.lostSeconds = this.isDisconnected ? Infinity : Math.max(0, message.pts - this.lastSeen);
  }

  // Plain object for the page.
  get summary() {
    return {
      track: this.track,
      name: this.name,
      secondsInView: this.lastSeen - this.firstSeen,
      lostSeconds: this.lostSeconds,
      isDisconnected: this.isDisconnected,
    };
  }
}

// Track ids are only comparable within one start of the service and one epoch of the source.
const connectionOf = ({ service, epoch }) => `${service} ${epoch}`;

// The bottom of a box moves more evenly than its center, which depends on the pose.
const bottomCenter = ([x1, , x2, y2]) => [(x1 + x2) / 2, y2];
