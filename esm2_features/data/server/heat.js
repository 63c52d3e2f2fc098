// A heat map: cells of colour with names at two sides, read with a pointer or arrow keys.

const WIDEST = 12_000; // pixels of a canvas that browsers still draw

/**
 * rows, columns: names. value(i, j): a number, or NaN. colour(value). say(i, j): a sentence.
 * every: a name at every so many columns (and rows, if rowsToo). dot(i, j): whether to mark it.
 */
export function heatMap({ label, rows, columns, value, colour, say, cell, every, rowsToo, dot }) {
  const part = document.createElement("div");
  const frame = document.createElement("div");
  frame.className = "heat";
  const canvas = document.createElement("canvas");
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-roledescription", "heat map");
  canvas.setAttribute("aria-label", `${label}; arrow keys move between cells`);
  const said = document.createElement("output");
  said.className = "said";
  said.textContent = "Point at a cell, or use the arrow keys.";
  frame.append(canvas);
  part.append(frame, said);
  const ratio = Math.min(devicePixelRatio, WIDEST / (columns.length * cell));
  const left = rowsToo ? 34 : 18;
  const top = 18;
  const [width, height] = [left + columns.length * cell + 2, top + rows.length * cell + 2];
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  let at = null;

  // The colours are computed once, as an image with a pixel for each cell.
  const cells = document.createElement("canvas");
  [cells.width, cells.height] = [columns.length, rows.length];
  const pixels = cells.getContext("2d");
  const dots = [];
  rows.forEach((_, i) =>
    columns.forEach((_, j) => {
      const number = value(i, j);
      pixels.fillStyle = Number.isNaN(number) ? "#999999" : colour(number);
      pixels.fillRect(j, i, 1, 1);
      if (dot?.(i, j)) dots.push([i, j]);
    }),
  );

  function draw() {
    const context = canvas.getContext("2d");
    const text = getComputedStyle(canvas).color;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    context.imageSmoothingEnabled = false;
    context.drawImage(cells, left, top, columns.length * cell, rows.length * cell);
    context.fillStyle = "#222222";
    for (const [i, j] of dots) {
      context.beginPath();
      context.arc(left + (j + 0.5) * cell, top + (i + 0.5) * cell, cell / 6, 0, 2 * Math.PI);
      context.fill();
    }
    context.fillStyle = text;
    context.font = "11px system-ui, sans-serif";
    context.textAlign = "center";
    columns.forEach((name, j) => {
      if ((j + 1) % every === 0 || j === 0) context.fillText(name, left + (j + 0.5) * cell, 12);
    });
    context.textAlign = "right";
    rows.forEach((name, i) => {
      if (rowsToo && (i + 1) % every !== 0 && i !== 0) return;
      context.fillText(name, left - 4, top + (i + 0.5) * cell + 4);
    });
    if (at) {
      context.lineWidth = 2;
      const size = Math.max(cell, 5);
      context.strokeStyle = "#ffffff";
      context.strokeRect(left + at[1] * cell - 1, top + at[0] * cell - 1, size + 2, size + 2);
      context.strokeStyle = "#000000";
      context.strokeRect(left + at[1] * cell - 2.5, top + at[0] * cell - 2.5, size + 5, size + 5);
    }
  }

  function go(i, j) {
    at = [
      Math.min(rows.length - 1, Math.max(0, i)),
      Math.min(columns.length - 1, Math.max(0, j)),
    ];
    said.textContent = say(...at);
    draw();
  }

  for (const name of ["pointermove", "pointerdown"]) {
    canvas.addEventListener(name, (event) => {
      const box = canvas.getBoundingClientRect();
      go(
        Math.floor((event.clientY - box.top - top) / cell),
        Math.floor((event.clientX - box.left - left) / cell),
      );
    });
  }
  canvas.addEventListener("keydown", (event) => {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!move || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const [i, j] = at ? [at[0] + move[0], at[1] + move[1]] : [0, 0];
    go(i, j);
    const x = left + at[1] * cell;
    if (x < frame.scrollLeft + left || x > frame.scrollLeft + frame.clientWidth - 2 * cell) {
      frame.scrollLeft = x - frame.clientWidth / 2;
    }
  });
  const watch = matchMedia("(prefers-color-scheme: dark)");
  const again = () => (canvas.isConnected ? draw() : watch.removeEventListener("change", again));
  watch.addEventListener("change", again);
  requestAnimationFrame(draw);
  return part;
}

/** What colours mean, from one end to the other. */
export function scaleOf(colour, low, high) {
  const part = document.createElement("p");
  part.className = "scale";
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [160, 1];
  canvas.setAttribute("aria-hidden", "true");
  const context = canvas.getContext("2d");
  for (let x = 0; x < 160; x++) {
    context.fillStyle = colour(x / 159);
    context.fillRect(x, 0, 1, 1);
  }
  const [first, last] = [low, high].map((words) => {
    const span = document.createElement("span");
    span.textContent = words;
    return span;
  });
  part.append(first, canvas, last);
  return part;
}
