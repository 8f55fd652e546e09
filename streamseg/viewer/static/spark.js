// A sparkline: one class's count over the last two minutes, on a canvas.

export function drawSpark(canvas, history, colour) {
  const ratio = devicePixelRatio;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (!width || !height) return;
  [canvas.width, canvas.height] = [Math.round(width * ratio), Math.round(height * ratio)];
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  const most = Math.max(1, ...history.map((count) => count ?? 0));
  const x = (second) => (second / (history.length - 1)) * width;
  const y = (count) => height - 1.5 - (count / most) * (height - 3);
  context.fillStyle = getComputedStyle(canvas).borderBottomColor;
  context.fillRect(0, height - 1, width, 1);
  for (const [begin, end] of stretches(history)) {
    const line = new Path2D();
    for (let second = begin; second < end; second++) line.lineTo(x(second), y(history[second]));
    const area = new Path2D(line);
    area.lineTo(x(end - 1), height);
    area.lineTo(x(begin), height);
    context.fillStyle = context.strokeStyle = colour;
    context.globalAlpha = 0.18;
    context.fill(area);
    context.globalAlpha = 1;
    context.lineWidth = 1.5;
    context.lineJoin = "round";
    context.stroke(line);
  }
}

// Where something is known, as [begin, end): a gap is drawn as a gap.
function stretches(history) {
  const found = [];
  history.forEach((count, second) => {
    if (count === null) return;
    const last = found.at(-1);
    if (last && last[1] === second) last[1] += 1;
    else found.push([second, second + 1]);
  });
  return found;
}
