// Numbers and states as people read them.

export const STATES = {
  connecting: "connecting",
  live: "live",
  stalled: "stalled",
  waiting: "waiting",
  ended: "ended",
  failed: "failed",
  silent: "no word",
};

export function milliseconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 1000) return `${Math.round(value)} ms`;
  return seconds(value / 1000);
}

export function seconds(value) {
  if (value < 60) return `${value.toFixed(1)} s`;
  const whole = Math.round(value);
  return `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

export const number = (value) => value.toLocaleString("en-GB");

export const sum = (byReason) => Object.values(byReason).reduce((total, count) => total + count, 0);

export function reasons(byReason) {
  const said = Object.entries(byReason).filter(([, count]) => count);
  return said.map(([reason, count]) => `${reason.replaceAll("_", " ")} ${number(count)}`).join(", ");
}

export const inView = (count) => (count === 0 ? "nothing in view" : `${count} in view`);
