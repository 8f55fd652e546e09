// One identity that somebody clicked on: where it went, how long it has been there, whether it is lost.

const TRAIL = 240; // points
const REMEMBERED = 5; // seconds that an identity may be out of sight without beginning anew

// When each identity of a source was first seen and last, in the source's own time.
export class Sightings {
  constructor() {
    this.seen = new Map();
    this.run = "";
  }

  add(message) {
    const run = runOf(message);
    if (run !== this.run) this.seen.clear(); // identities don't cross a reconnection
    this.run = run;
    for (const { track } of message.instances) {
      if (track === -1) continue;
      const first = this.seen.get(track)?.first ?? message.pts;
      this.seen.set(track, { first, last: message.pts });
    }
    for (const [track, { last }] of this.seen) {
      if (Math.abs(message.pts - last) > REMEMBERED) this.seen.delete(track);
    }
  }

  firstOf(track) {
    return this.seen.get(track)?.first;
  }
}

export class Follow {
  constructor({ track, name }, message, first) {
    this.track = track;
    this.name = name;
    this.trail = [];
    this.run = runOf(message);
    this.first = first ?? message.pts;
    this.last = message.pts;
    this.lostFor = 0;
    this.crossed = false;
  }

  // Take the next frame.
  update(message) {
    this.crossed = runOf(message) !== this.run;
    const found = this.crossed ? undefined : message.instances.find((i) => i.track === this.track);
    if (found) {
      this.last = message.pts;
      this.trail.push(footOf(found.box));
      if (this.trail.length > TRAIL) this.trail.shift();
    }
    this.lostFor = this.crossed ? Infinity : Math.max(0, message.pts - this.last);
  }

  // For the page, which says it in words.
  get report() {
    return {
      track: this.track,
      name: this.name,
      inView: this.last - this.first,
      lostFor: this.lostFor,
      crossed: this.crossed,
    };
  }
}

const runOf = ({ service, epoch }) => `${service} ${epoch}`;

// Where it stands, which is what moves evenly.
const footOf = ([x1, , x2, y2]) => [(x1 + x2) / 2, y2];
