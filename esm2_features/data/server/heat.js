// A heat map: cells of colour with names at two sides, read with a pointer or arrow keys.

const WIDEST = 12_000; // pixels of a canvas that browsers still draw
const STEPS = [5, 10, 20, 50, 100, 200, 500, 1000]; // between names
const SHADES = 256;

/**
 * rows, columns: names. value(i, j): a number, or NaN. colour(value). say(i, j): a sentence.
 * cell: size in pixels; with isFitted, at most this, and as small as the width of the page demands.
 * rowsToo: names of rows as sparse as those of columns. dot(i, j): whether to mark it.
 */
export function heatMap({ label, rows, columns, value, colour, say, cell: most, isFitted, rowsToo, dot }) {
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
  const left = rowsToo ? 34 : 18;
  const top = 18;
  const dots = rows.flatMap((_, i) => columns.flatMap((_, j) => (dot?.(i, j) ? [[i, j]] : [])));
  let at = null;
  let [room, cell, ratio, width, height, every, cells] = [];

  function resize() {
    room = frame.clientWidth;
    const fits = (room - left - 8) / columns.length;
    cell = isFitted ? Math.min(most, fits) : most;
    every = STEPS.find((step) => step * cell >= 40) ?? columns.length;
    ratio = Math.min(devicePixelRatio, WIDEST / (columns.length * cell));
    [width, height] = [left + columns.length * cell + 2, top + rows.length * cell + 2];
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    cells = imageOf(rows.length, columns.length, value, colour, cell * ratio);
    draw();
  }

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
      if ((j + 1) % every && j) return;
      const half = context.measureText(name).width / 2;
      context.fillText(name, Math.min(left + (j + 0.5) * cell, width - half), 12);
    });
    context.textAlign = "right";
    rows.forEach((name, i) => {
      if (rowsToo && (i + 1) % every !== 0 && i !== 0) return;
      context.fillText(name, left - 4, Math.min(top + (i + 0.5) * cell + 4, height - 1));
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
  // A change of size within the observer's own call would be an error.
  new ResizeObserver(() =>
    requestAnimationFrame(() => frame.clientWidth && frame.clientWidth !== room && resize()),
  ).observe(frame);
  return part;
}

/** An image with a pixel for each cell. Where cells are smaller than pixels, the largest number of a pixel's is shown. */
function imageOf(rows, columns, value, colour, cell) {
  const shrunk = Math.min(1, cell);
  const [width, height] = [columns, rows].map((n) => Math.max(1, Math.floor(n * shrunk)));
  const numbers = new Float32Array(width * height).fill(NaN);
  for (let i = 0; i < rows; i++) {
    const start = width * Math.floor((i * height) / rows);
    for (let j = 0; j < columns; j++) {
      const place = start + Math.floor((j * width) / columns);
      const number = value(i, j);
      if (!(number <= numbers[place])) numbers[place] = number;
    }
  }
  const [low, high] = numbers.reduce(([a, b], v) => (v < a ? [v, b] : v > b ? [a, v] : [a, b]), [0, 1e-9]);
  const shades = stripe(SHADES + 1, (k) =>
    k < SHADES ? colour(low + ((high - low) * k) / (SHADES - 1)) : "#999999",
  );
  const { data } = shades.getContext("2d").getImageData(0, 0, SHADES + 1, 1);
  const palette = new Uint32Array(data.buffer);
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  const image = new ImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  numbers.forEach((number, place) => {
    const shade = Math.round(((number - low) / (high - low)) * (SHADES - 1));
    pixels[place] = palette[Number.isNaN(number) ? SHADES : shade];
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

/** What colours mean, from one end to the other. */
export function scaleOf(colour, low, high) {
  const part = document.createElement("p");
  part.className = "scale";
  const canvas = stripe(160, (x) => colour(x / 159));
  canvas.setAttribute("aria-hidden", "true");
  const [first, last] = [low, high].map((words) => {
    const span = document.createElement("span");
    span.textContent = words;
    return span;
  });
  part.append(first, canvas, last);
  return part;
}

function stripe(width, colour) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, 1];
  const context = canvas.getContext("2d");
  for (let x = 0; x < width; x++) {
    context.fillStyle = colour(x);
    context.fillRect(x, 0, 1, 1);
  }
  return canvas;
}
