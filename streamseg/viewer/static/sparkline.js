// Sparkline of the count of one class over the last two minutes.

export function drawSparkline(canvas, history, color) {
  const ratio = devicePixelRatio;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (!width || !height) return;
  [canvas.width, canvas.height] = [Math.round(width * ratio), Math.round(height * ratio)];
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  const max = Math.max(1, ...history.map((count) => count ?? 0));
  const x = (second) => (second / (history.length - 1)) * width;
  const y = (count) => height - 1.5 - (count / max) * (height - 3);
  context.fillStyle = getComputedStyle(canvas).borderBottomColor;
  context.fillRect(0, height - 1, width, 1);
  for (const [start, end] of intervalsWithCounts(history)) {
    const line = new Path2D();
    for (let second = start; second < end; second++) line.lineTo(x(second), y(history[second]));
    const area = new Path2D(line);
    area.lineTo(x(end - 1), height);
    area.lineTo(x(start), height);
    context.fillStyle = context.strokeStyle = color;
    context.globalAlpha = 0.18;
    context.fill(area);
    context.globalAlpha = 1;
    context.lineWidth = 1.5;
    context.lineJoin = "round";
    context.stroke(line);
  }
}

// Return the intervals [start, end) of seconds that have a count; null is a gap.
function intervalsWithCounts(history) {
  const intervals = [];
  history.forEach((count, second) => {
    if (count === null) return;
    const last = intervals.at(-1);
    if (last && last[1] === second) last[1] += 1;
    else intervals.push([second, second + 1]);
  });
  return intervals;
}
