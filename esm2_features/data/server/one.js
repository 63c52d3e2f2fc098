// The mutational scan and the contact map of one sequence.

import { ask, inPortions } from "./api.js";
import { blues, redWhiteBlue } from "./colours.js";
import { residuesOf } from "./fasta.js";
import { csvOf, save } from "./files.js";
import { heatMap, scaleOf } from "./heat.js";
import { $, element, signed } from "./parts.js";

const BY_PROPERTY = [..."GAVLIMPFWYSTCNQKRHDE"]; // aliphatic, aromatic, polar, positive, negative
const MASK = "<mask>";
const MOST_NUMBERS = 1_000_000; // of an answer
const APART = 6; // residues nearer than this are in contact in any protein
const FEWEST_PAIRS = 20;

const NO_CONTACTS = (name) =>
  `${name} has no contact regression on this server, so there is no contact map. The official ` +
  "ESM-2 models come with one: choose another model, and embed again.";

let record = null;
let model = null;
let running = null;
let tables = {}; // contents of the files: {scan, contacts}

/** Choose another sequence, and clear what is shown of the last one. */
export function prepareOne(chosen, of) {
  forgetOne();
  [record, model] = [chosen, of];
}

export function forgetOne() {
  running?.abort();
  [record, running, tables] = [null, null, {}];
  for (const id of ["scan", "contacts"]) {
    $(id).hidden = true;
    $(`${id}-view`).replaceChildren();
  }
}

// ------------------------------------------------------------------ mutational scan

async function scan(signal, onDone) {
  const residues = residuesOf(record.sequence);
  if (residues.includes(MASK)) throw new Error("The sequence holds <mask>; a scan needs residues.");
  const L = residues.length;
  const rows = [];
  let order = [];
  await inPortions(residues.map(() => L), {
    most: Math.max(1, Math.min(model.schema.maxItems, Math.floor(MOST_NUMBERS / (20 * L)))),
    limit: 20_000,
    send: async (from, to) => {
      const items = residues.slice(from, to).map((_, k) => ({
        sequence: residues.map((letter, j) => (j === from + k ? MASK : letter)).join(""),
      }));
      const path = `api/v3/${encodeURIComponent(model.model)}/predict/`;
      const { results } = await ask(path, { body: { items }, signal });
      results.forEach(({ logits, vocab_tokens }, k) => {
        order = vocab_tokens;
        rows[from + k] = logits[from + k];
      });
    },
    onDone: (n) => onDone(n, L, "positions"),
  });
  const place = (letter) => order.indexOf(letter);
  // A difference of logits is one of log-probabilities. An X is none of the 20: no difference.
  const scores = residues.map((wild, j) =>
    BY_PROPERTY.map((to) => (place(wild) < 0 ? NaN : rows[j][place(to)] - rows[j][place(wild)])),
  );
  showScan(residues, scores);
}

function showScan(residues, scores) {
  const largest = Math.max(...scores.flat().filter(Number.isFinite).map(Math.abs), 1e-6);
  const say = (i, j) => {
    const [from, to, score] = [residues[j], BY_PROPERTY[i], scores[j][i]];
    if (Number.isNaN(score)) return `${from}${j + 1}: no residue to compare with.`;
    return from === to
      ? `${from}${j + 1}: the residue of the sequence.`
      : `${from}${j + 1}${to}: ${signed(score)}`;
  };
  const map = heatMap({
    label: `Mutational scan of ${record.name}`,
    rows: BY_PROPERTY,
    columns: residues.map((_, j) => String(j + 1)),
    value: (i, j) => scores[j][i],
    colour: (score) => redWhiteBlue(score / largest),
    dot: (i, j) => residues[j] === BY_PROPERTY[i],
    say,
    cell: 15,
    every: 5,
  });
  const scale = scaleOf((share) => redWhiteBlue(2 * share - 1), signed(-largest), signed(largest));
  scale.append(element("span", {}, "● the sequence"));
  const lines = residues.flatMap((from, j) => {
    const others = BY_PROPERTY.map((to, i) => ({ to, score: scores[j][i] })).filter(({ to }) => to !== from);
    if (others.some(({ score }) => Number.isNaN(score))) return [];
    others.sort((a, b) => b.score - a.score);
    const mean = others.reduce((sum, { score }) => sum + score, 0) / others.length;
    const [best, worst] = [others[0], others.at(-1)];
    return [[`${from}${j + 1}`, `${best.to} ${signed(best.score)}`, `${worst.to} ${signed(worst.score)}`, signed(mean)]];
  });
  $("scan-view").replaceChildren(
    scale,
    map,
    tableOf("As a table", ["Position", "Most likely substitution", "Least likely", "Mean of 19"], lines),
  );
  tables.scan = [["variant", "score"]].concat(
    residues.flatMap((from, j) =>
      BY_PROPERTY.flatMap((to, i) =>
        to === from || Number.isNaN(scores[j][i]) ? [] : [[`${from}${j + 1}${to}`, scores[j][i].toPrecision(7)]],
      ),
    ),
  );
}

// ------------------------------------------------------------------ contacts

async function contacts(signal, onDone) {
  onDone(0, 1, "maps");
  const body = { items: [{ sequence: record.sequence }], params: { include: ["contacts"] } };
  const path = `api/v3/${encodeURIComponent(model.model)}/encode/`;
  const { results } = await ask(path, { body, signal });
  const p = results[0].contacts;
  const residues = residuesOf(record.sequence);
  const L = residues.length;
  const name = (i) => `${residues[i]}${i + 1}`;
  const say = (i, j) => `${name(i)} and ${name(j)}: ${p[i][j].toFixed(3)}`;
  const map = heatMap({
    label: `Contact map of ${record.name}`,
    rows: residues.map((_, i) => String(i + 1)),
    columns: residues.map((_, i) => String(i + 1)),
    value: (i, j) => p[i][j],
    colour: blues,
    say,
    cell: Math.max(1, Math.min(12, Math.floor(560 / L))),
    every: [5, 10, 20, 50, 100, 200, 500].find((step) => L / step <= 12) ?? 500,
    rowsToo: true,
  });
  const pairs = [];
  for (let i = 0; i < L; i++) for (let j = i + 1; j < L; j++) pairs.push([i, j]);
  const far = pairs.filter(([i, j]) => j - i >= APART).sort(([a, b], [c, d]) => p[c][d] - p[a][b]);
  const most = far.slice(0, Math.max(FEWEST_PAIRS, L)).map(([i, j]) => [name(i), name(j), p[i][j].toFixed(3)]);
  const title = `The likeliest pairs, ${APART} residues or more apart`;
  $("contacts-view").replaceChildren(scaleOf(blues, "0", "1"), map, tableOf(title, ["Residue", "Residue", "Probability"], most));
  tables.contacts = [["i", "j", "probability"], ...pairs.map(([i, j]) => [i + 1, j + 1, p[i][j]])];
}

// ------------------------------------------------------------------ both

function tableOf(title, head, lines) {
  const rows = lines.map(([first, ...others]) =>
    element("tr", {}, element("th", { scope: "row" }, first), ...others.map((cell) => element("td", {}, cell))),
  );
  const heads = head.map((word) => element("th", { scope: "col" }, word));
  const table = element("table", {}, element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...rows));
  const frame = element("div", { class: "scroll", role: "region", "aria-label": title, tabindex: "0" }, table);
  return element("details", {}, element("summary", {}, title), frame);
}

async function show(id, work) {
  running?.abort();
  const mine = (running = new AbortController());
  const view = $(`${id}-view`);
  const said = element("p", { role: "status" });
  const bar = element("progress", { max: "1", "aria-label": "Progress" });
  const stop = element("button", { type: "button" }, "Cancel");
  stop.addEventListener("click", () => mine.abort());
  $(id).hidden = false;
  $(`${id}-save`).hidden = true;
  view.replaceChildren(bar, said, stop);
  $(id).scrollIntoView({ block: "nearest" });
  try {
    await work(mine.signal, (n, all, things) => {
      bar.value = n / all;
      said.textContent = `${n} of ${all} ${things}`;
    });
    $(`${id}-save`).hidden = false;
  } catch (error) {
    if (running !== mine) return; // another sequence has been chosen
    if (error.name === "AbortError") view.replaceChildren(element("p", { role: "status" }, "Cancelled."));
    else {
      const words = error.code === "no_contacts" ? NO_CONTACTS(model.model) : error.message;
      view.replaceChildren(element("p", { class: "error", role: "alert" }, words));
    }
  }
}

$("ask-scan").addEventListener("click", () => show("scan", scan));
$("ask-contacts").addEventListener("click", () => show("contacts", contacts));
for (const id of ["scan", "contacts"]) {
  $(`${id}-save`).addEventListener("click", () => {
    save(csvOf(tables[id]), `${record.name.replace(/[^\w.-]+/g, "_")}_${id}.csv`);
  });
}
