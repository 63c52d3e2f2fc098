// The results: the map, the list, the chosen sequence, the files.

import { choices, mark, sorting, viridis } from "./colours.js";
import { save, WRITERS } from "./files.js";
import { scaleOf } from "./heat.js";
import { PointMap } from "./map.js";
import { nearest, pca } from "./numbers.js";
import { forgetOne, prepareOne } from "./one.js";
import { $, element, number } from "./parts.js";

const NEIGHBOURS = 10;
const AT_ONCE = 500; // rows of the list
const FEWEST = 3; // points of a map

const groupHeads = [$("list-group"), $("near-group")].map((head) => [head, head.previousElementSibling]);

let shown = null; // {records, rows, model, layer, pooling, points, looks}
let chosen = -1;
let many = AT_ONCE;

const map = new PointMap($("map"), $("map-tip"), {
  mark,
  nameOf: (i) => shown.records[i].name,
  onChoose: choose,
  onPoint: (i) => {
    if (i < 0) return;
    const { name, length } = shown.records[i];
    const label = shown.sorted.labels[i];
    const group = $("colour").value === "length" || !label ? "" : `, ${$("colour").value} ${label}`;
    $("map-said").textContent = `${name}${group}, ${length} residues`;
  },
});

/** Show results: records, rows (Float32Arrays), lines about those left out, and how they were computed. */
export async function showResults(run) {
  forgetOne();
  const { points, explained } = await pca(run.rows);
  shown = { ...run, points };
  chosen = -1;
  many = AT_ONCE;
  $("filter").value = "";
  $("one-name").textContent = "Choose a sequence";
  $("one-none").hidden = false;
  $("one-part").hidden = true;
  const n = run.leftOut.length;
  $("left-out").hidden = !n;
  $("left-out").firstElementChild.textContent = `${n} ${n === 1 ? "sequence is" : "sequences are"} left out`;
  $("left-out").lastElementChild.replaceChildren(...run.leftOut.map((line) => element("li", {}, line)));
  const before = [...$("colour").options].map(({ value }) => value);
  const words = choices(run.records);
  // The choice stays for data of the same kind.
  if (words.join("\n") !== before.join("\n")) {
    $("colour").replaceChildren(...words.map((word) => element("option", { value: word }, word)));
  }
  const isMap = run.records.length >= FEWEST;
  $("map-part").hidden = $("colour").parentElement.hidden = !isMap;
  $("map-none").hidden = isMap;
  $("map-none").textContent = `A map needs ${FEWEST} sequences.`;
  const [first, second] = explained.map((share) => `${(100 * share).toFixed(0)} %`);
  const of = `${run.model.model}, layer ${run.layer}, ${run.pooling}`;
  $("map-about").textContent =
    `Principal components of ${run.records.length} vectors (${of}). Across, PC 1: ${first} of the ` +
    `variance; up, PC 2: ${second}.`;
  $("results").hidden = false;
  colour();
  if (isMap) map.show(points);
}

function colour() {
  const sorted = sorting(shown.records, $("colour").value);
  shown.sorted = sorted;
  map.looks = sorted.looks;
  map.draw();
  const choice = $("colour").value;
  for (const [head, before] of groupHeads) {
    head.textContent = choice;
    if (choice === "length") head.remove();
    else before.after(head);
  }
  const items = sorted.groups.map(({ label, count, look }) => {
    const canvas = element("canvas", { width: "32", height: "32", "aria-hidden": "true" });
    canvas.style.width = canvas.style.height = "16px";
    const context = canvas.getContext("2d");
    context.strokeStyle = "transparent";
    mark(context, look(), 16, 16, 11);
    return element("li", {}, canvas, element("span", {}, `${label} (${count})`));
  });
  if (sorted.scale) {
    const { low, high } = sorted.scale;
    const scale = element("li", {}, scaleOf(viridis, number(low), number(high)));
    items.unshift(element("li", {}, choice), scale);
  }
  $("legend").replaceChildren(...items);
  list();
  if (chosen >= 0) neighbours();
}

// ------------------------------------------------------------------ tables

function list() {
  const words = $("filter").value.trim().toLowerCase();
  const found = shown.records.flatMap(({ name }, i) => (name.toLowerCase().includes(words) ? [i] : []));
  const rows = found.slice(0, many).map((i) => {
    const { name, length } = shown.records[i];
    const row = element("tr", { class: i === chosen ? "chosen" : "" },
      element("th", { scope: "row" }, chooser(i, name)),
      element("td", { class: "number" }, String(length)),
      ...group(i),
      ...shown.points[i].map((value) => element("td", { class: "number" }, value.toFixed(3))),
    );
    row.dataset.row = i;
    return row;
  });
  $("list").tBodies[0].replaceChildren(...rows);
  $("more").hidden = found.length <= many;
  $("list-count").textContent = `${rows.length} of ${found.length}`;
}

function group(i) {
  return $("colour").value === "length" ? [] : [element("td", {}, shown.sorted.labels[i] || "–")];
}

function chooser(i, name) {
  const button = element("button", { type: "button", class: "link" }, name);
  button.addEventListener("click", () => {
    choose(i);
    $("one-name").focus();
  });
  return button;
}

function neighbours() {
  const near = nearest(shown.rows, chosen, NEIGHBOURS);
  $("near-part").hidden = !near.length;
  $("near").tBodies[0].replaceChildren(
    ...near.map(({ index, cosine }) => {
      const { name, length } = shown.records[index];
      return element("tr", {},
        element("th", { scope: "row" }, chooser(index, name)),
        element("td", { class: "number" }, cosine.toFixed(4)),
        element("td", { class: "number" }, String(length)),
        ...group(index),
      );
    }),
  );
  map.choose(chosen, near.map(({ index }) => index));
}

function choose(i) {
  chosen = i;
  const { name, header, sequence, length } = shown.records[i];
  $("one-name").textContent = name;
  $("one-none").hidden = true;
  $("one-part").hidden = false;
  $("one-about").textContent = `${length} residues${header && header !== name ? `. ${header}` : ""}`;
  $("one-sequence").textContent = sequence;
  $("map-said").textContent = `Chosen: ${name}`;
  for (const row of $("list").tBodies[0].rows) row.classList.toggle("chosen", row.dataset.row === `${i}`);
  neighbours();
  prepareOne(shown.records[i], shown.model);
}

// ------------------------------------------------------------------ events

$("colour").addEventListener("change", colour);
$("filter").addEventListener("input", () => {
  many = AT_ONCE;
  list();
});
$("more").addEventListener("click", () => {
  const before = many;
  many += AT_ONCE;
  list();
  if ($("more").hidden) $("list").tBodies[0].rows[before].querySelector("button").focus();
});
$("zoom-in").addEventListener("click", () => map.zoom(1.5));
$("zoom-out").addEventListener("click", () => map.zoom(1 / 1.5));
$("zoom-fit").addEventListener("click", () => map.fit());
for (const button of document.querySelectorAll("[data-save]")) {
  button.addEventListener("click", () => {
    const { records, rows, model, layer, pooling } = shown;
    const word = pooling === "bos" ? "cls" : pooling; // as in the files of the library
    const table = {
      ids: records.map(({ name }) => name),
      sequences: records.map(({ sequence }) => sequence),
      features: Array.from(rows[0], (_, k) => `${model.name}_L${layer}_${word}_${k}`),
      rows,
    };
    const kind = button.dataset.save;
    save(WRITERS[kind](table), `${model.model}_L${layer}_${word}.${kind}`);
  });
}

