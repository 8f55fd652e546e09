// Formatting of numbers and states as text.

export const STATES = {
  connecting: "connecting",
  live: "live",
  stalled: "stalled",
  waiting: "waiting",
  ended: "ended",
  failed: "failed",
  silent: "no word",
};

export function formatMilliseconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 1000) return `${Math.round(value)} ms`;
  return formatSeconds(value / 1000);
}

export function formatSeconds(value) {
  if (value < 60) return `${value.toFixed(1)} s`;
  const whole = Math.round(value);
  return `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

export const formatNumber = (value) => value.toLocaleString("en-GB");

export const sumCounts = (byReason) =>
  Object.values(byReason).reduce((total, count) => total + count, 0);

export function formatReasons(byReason) {
  const nonzero = Object.entries(byReason).filter(([, count]) => count);
  return nonzero
    .map(([reason, count]) => `${reason.replaceAll("_", " ")} ${formatNumber(count)}`)
    .join(", ");
}

export const formatInView = (count) => (count === 0 ? "nothing in view" : `${count} in view`);
