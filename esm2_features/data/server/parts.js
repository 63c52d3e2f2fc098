// Small things that the parts of the page share. Never here: what any of them does.

/** The element of a name. */
export function $(id) {
  return document.getElementById(id);
}

/** Make an element. Text is text, whatever a header holds. */
export function element(kind, attributes = {}, ...contents) {
  const made = document.createElement(kind);
  for (const [name, value] of Object.entries(attributes)) if (value) made.setAttribute(name, value);
  made.append(...contents);
  return made;
}

/** A number as people write it. */
export function number(value) {
  return String(Number(value.toPrecision(4)));
}

/** A number with its sign. */
export function signed(value) {
  return `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;
}
