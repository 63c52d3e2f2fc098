// Colours and shapes of the points of a map: one for each group, or a scale for numbers.

import { isNumber } from "./table.js";

const LENGTH = "length";
const MOST_GROUPS = 8;
const OTHERS = "others";
const MISSING = "no value";
const LABEL = /^(labels?|class|target|kind|y)$/i;
const GREY = "#888888";

// These can be distinguished with colour blindness; groups also differ by their shapes.
const LIGHT = ["#0072b2", "#c04a00", "#007a5a", "#aa3377", "#7a6a00", "#5a4fcf", "#333333", "#b3001e"];
const DARK = ["#56b4e9", "#ff9d4d", "#35d0a0", "#f08cc4", "#f0e442", "#b0a8ff", "#e0e0e0", "#ff7b7b"];
const SHAPES = ["circle", "square", "triangle", "diamond", "cross", "down", "plus", "star"];
const VIRIDIS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
const dark = matchMedia("(prefers-color-scheme: dark)");

/** Keys to colour points by: those of headers or columns, and the length. */
export function choices(records) {
  const keys = new Map();
  for (const { fields } of records) {
    for (const key of Object.keys(fields)) if (key !== LENGTH) keys.set(key, (keys.get(key) ?? 0) + 1);
  }
  // Usual names of labels come first, then keys with few values, which make groups, then numbers.
  const scored = [...keys].map(([key, count]) => {
    const distinct = new Set(records.map(({ fields }) => fields[key]));
    const isGroups = distinct.size > 1 && distinct.size <= MOST_GROUPS && count > 1;
    const score = 4 * LABEL.test(key) + 2 * isGroups + Boolean(sorting(records, key).scale);
    return { key, score };
  });
  scored.sort((a, b) => b.score - a.score);
  return [...scored.map(({ key }) => key), LENGTH];
}

/** Group points by a key: {labels, looks(i), groups}, and for numbers {scale}. */
export function sorting(records, choice) {
  const values = records.map(({ fields, length }) => (choice === LENGTH ? length : fields[choice]));
  const numbers = values.map((value) => (value !== undefined && isNumber(String(value)) ? Number(value) : NaN));
  const there = numbers.filter((value) => !Number.isNaN(value));
  const distinct = new Set(there);
  // A few whole numbers are names of classes.
  const isClasses = distinct.size <= MOST_GROUPS && there.every(Number.isInteger);
  const isScale =
    there.length > 0 &&
    values.every((value, i) => value === undefined || !Number.isNaN(numbers[i])) &&
    (choice === LENGTH || (distinct.size > 2 && !isClasses));
  const labels = values.map((value) => (value === undefined ? "" : String(value)));
  const missing = values.filter((value) => value === undefined).length;
  const rest = { label: MISSING, count: missing, look: () => ({ colour: GREY, shape: "cross" }) };
  if (isScale) {
    const [low, high] = there.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);
    const share = (value) => (high > low ? (value - low) / (high - low) : 0.5);
    const looks = (i) =>
      Number.isNaN(numbers[i])
        ? rest.look()
        : { colour: viridis(share(numbers[i])), shape: "circle", edge: GREY };
    return { labels, looks, groups: missing ? [rest] : [], scale: { low, high } };
  }
  const counts = new Map();
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
  const known = [...counts.keys()].filter((value) => value !== undefined);
  known.sort((a, b) => counts.get(b) - counts.get(a) || (a < b ? -1 : 1));
  const shown = known.length > MOST_GROUPS ? known.slice(0, MOST_GROUPS - 1) : known;
  const groups = shown.map((value, place) => ({
    label: value,
    count: counts.get(value),
    look: () => ({ colour: (dark.matches ? DARK : LIGHT)[place], shape: SHAPES[place] }),
  }));
  const others = { label: OTHERS, count: 0, look: () => ({ colour: GREY, shape: "circle" }) };
  for (const value of known.slice(shown.length)) others.count += counts.get(value);
  const group = (value) => groups[shown.indexOf(value)] ?? (value === undefined ? rest : others);
  const looks = (i) => group(values[i]).look();
  return { labels, looks, groups: [...groups, ...[others, rest].filter(({ count }) => count)] };
}

export function viridis(share) {
  const at = Math.min(1, Math.max(0, share)) * (VIRIDIS.length - 1);
  return between(VIRIDIS[Math.floor(at)], VIRIDIS[Math.ceil(at)], at % 1);
}

/** Red for what is less than 0, blue for what is more; from -1 to 1. */
export function redWhiteBlue(share) {
  const towards = share < 0 ? [178, 24, 43] : [33, 102, 172];
  return between([247, 247, 247], towards, Math.min(1, Math.abs(share)));
}

/** White for 0, dark blue for 1. */
export function blues(share) {
  return share < 0.5
    ? between([255, 255, 255], [107, 174, 214], 2 * share)
    : between([107, 174, 214], [8, 48, 107], 2 * share - 1);
}

function between(a, b, share) {
  return `rgb(${a.map((value, i) => Math.round(value + (b[i] - value) * share)).join(" ")})`;
}

const PATHS = {
  square: [[-0.85, -0.85], [0.85, -0.85], [0.85, 0.85], [-0.85, 0.85]],
  triangle: [[0, -1.15], [1.05, 0.8], [-1.05, 0.8]],
  down: [[0, 1.15], [1.05, -0.8], [-1.05, -0.8]],
  diamond: [[0, -1.2], [1.2, 0], [0, 1.2], [-1.2, 0]],
  plus: plus(0),
  cross: plus(Math.PI / 4),
  star: Array.from({ length: 10 }, (_, i) => {
    const radius = i % 2 ? 0.55 : 1.3;
    return [radius * Math.sin((i * Math.PI) / 5), -radius * Math.cos((i * Math.PI) / 5)];
  }),
};

function plus(turn) {
  const [a, b] = [0.4, 1.15];
  const corners = [
    [-a, -b], [a, -b], [a, -a], [b, -a], [b, a], [a, a], [a, b], [-a, b], [-a, a], [-b, a], [-b, -a], [-a, -a],
  ];
  const [c, s] = [Math.cos(turn), Math.sin(turn)];
  return corners.map(([x, y]) => [c * x - s * y, s * x + c * y]);
}

/** Draw one mark, filled; with an edge of its own where its colour may be close to the background. */
export function mark(context, { colour, shape, edge }, x, y, radius) {
  context.beginPath();
  if (shape === "circle") context.arc(x, y, radius, 0, 2 * Math.PI);
  else PATHS[shape].forEach(([dx, dy]) => context.lineTo(x + radius * dx, y + radius * dy));
  context.closePath();
  context.fillStyle = colour;
  context.fill();
  const { strokeStyle } = context;
  context.strokeStyle = edge ?? strokeStyle;
  context.stroke();
  context.strokeStyle = strokeStyle;
}
