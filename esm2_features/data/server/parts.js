// What the parts of the page share.

/** The element with an id. */
export function $(id) {
  return document.getElementById(id);
}

/** Make an element. Strings become text, whatever a header holds. */
export function element(kind, attributes = {}, ...contents) {
  const made = document.createElement(kind);
  for (const [name, value] of Object.entries(attributes)) if (value) made.setAttribute(name, value);
  made.append(...contents);
  return made;
}

/** A number with 4 digits. */
export function number(value) {
  return String(Number(value.toPrecision(4)));
}

/** A number with its sign. */
export function signed(value) {
  return `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;
}

/** Seconds in words, rounded up. */
export function duration(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.ceil(seconds))} s`;
  return seconds < 5400 ? `${Math.ceil(seconds / 60)} min` : `${Math.ceil(seconds / 3600)} h`;
}
