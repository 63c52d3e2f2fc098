// The mutational scan and the contact map of one sequence.

import { ask, inPortions } from "./api.js";
import { blues, redWhiteBlue } from "./colours.js";
import { residuesOf } from "./fasta.js";
import { csvOf, save } from "./files.js";
import { heatMap, scaleOf } from "./heat.js";
import { $, duration, element, signed } from "./parts.js";

const BY_PROPERTY = [..."GAVLIMPFWYSTCNQKRHDE"]; // aliphatic, aromatic, polar, positive, negative
const MASK = "<mask>";
const MOST_NUMBERS = 1_000_000; // of an answer
const LONG = 10; // seconds; a longer scan waits until the user agrees
const SAMPLE = 1000; // residues of a request that measures how fast the server is
const APART = 6; // residues nearer than this are in contact in any protein
const FEWEST_PAIRS = 20;
const WIDEST_MAP = 900; // pixels of a contact map

const NO_CONTACTS = (name) =>
  `${name} has no contact regression on this server, so there is no contact map. The official ` +
  "ESM-2 models come with one: choose another model, and embed again.";

let record = null;
let model = null;
let running = null;
let tables = {}; // make the contents of the files: {scan, contacts}

/** Choose another sequence, and clear what is shown of the last one. */
export function prepareOne(chosen, of) {
  forgetOne();
  [record, model] = [chosen, of];
  const L = residuesOf(record.sequence).length;
  $("scan-time").textContent = model.pace ? `A scan takes about ${duration(model.pace * L * L)}.` : "";
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

async function scan(signal, tell, agree) {
  const residues = residuesOf(record.sequence);
  if (residues.includes(MASK)) throw new Error("The sequence holds <mask>; a scan needs residues.");
  const L = residues.length;
  const rows = [];
  let order = [];
  const most = Math.max(1, Math.min(model.schema.maxItems, Math.floor(MOST_NUMBERS / (20 * L))));
  const send = async (from, to) => {
    const items = residues.slice(from, to).map((_, k) => ({
      sequence: residues.map((letter, j) => (j === from + k ? MASK : letter)).join(""),
    }));
    const path = `api/v3/${encodeURIComponent(model.model)}/predict/`;
    const { results } = await ask(path, { body: { items }, signal });
    results.forEach(({ logits, vocab_tokens }, k) => {
      order = vocab_tokens;
      rows[from + k] = logits[from + k];
    });
  };
  // The first position may load the model; those after it tell how long the others will take.
  await send(0, 1);
  let done = 1;
  let begun = performance.now();
  const secondsLeft = (first) => (((performance.now() - begun) / 1000) * (L - done)) / (done - first);
  if (L > 1) {
    done += Math.min(L - 1, most, Math.max(1, Math.floor(SAMPLE / L)));
    await send(1, done);
    const seconds = secondsLeft(1);
    tell(done / L, "");
    await agree(`About ${duration(seconds)} for ${L} positions.`, seconds > LONG);
  }
  const start = done;
  begun = performance.now();
  await inPortions(residues.slice(start).map(() => L), {
    most,
    limit: 20_000,
    send: (from, to) => send(start + from, start + to),
    onDone: (n) => {
      done = start + n;
      const left = done < L ? `; about ${duration(secondsLeft(start))} left` : "";
      tell(done / L, `${done} of ${L} positions${left}`);
    },
  });
  if (done > start) model.pace = (performance.now() - begun) / 1000 / ((done - start) * L);
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
  fill(
    "scan",
    scale,
    map,
    tableOf("As a table", ["Position", "Most likely substitution", "Least likely", "Mean of 19"], lines),
  );
  tables.scan = () => [["variant", "score"]].concat(
    residues.flatMap((from, j) =>
      BY_PROPERTY.flatMap((to, i) =>
        to === from || Number.isNaN(scores[j][i]) ? [] : [[`${from}${j + 1}${to}`, scores[j][i].toPrecision(7)]],
      ),
    ),
  );
}

// ------------------------------------------------------------------ contacts

async function contacts(signal, tell) {
  tell(0, "0 of 1 maps");
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
    cell: Math.min(12, WIDEST_MAP / L),
    isFitted: true,
    rowsToo: true,
  });
  const pairs = [];
  for (let i = 0; i < L; i++) for (let j = i + 1; j < L; j++) pairs.push([i, j]);
  const far = pairs.filter(([i, j]) => j - i >= APART).sort(([a, b], [c, d]) => p[c][d] - p[a][b]);
  const most = far.slice(0, Math.max(FEWEST_PAIRS, L)).map(([i, j]) => [name(i), name(j), p[i][j].toFixed(3)]);
  const title = `The likeliest pairs, ${APART} residues or more apart`;
  fill("contacts", scaleOf(blues, "0", "1"), map, tableOf(title, ["Residue", "Residue", "Probability"], most));
  tables.contacts = () => [["i", "j", "probability"], ...pairs.map(([i, j]) => [i + 1, j + 1, p[i][j]])];
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

/** Replace what is shown; a button that had the focus leaves it to the heading. */
function fill(id, ...contents) {
  const hadFocus = $(`${id}-view`).contains(document.activeElement);
  $(`${id}-view`).replaceChildren(...contents);
  if (hadFocus) $(`${id}-title`).focus();
}

async function show(id, work) {
  running?.abort();
  const mine = (running = new AbortController());
  const view = $(`${id}-view`);
  const said = element("p", { role: "status" });
  const bar = element("progress", { max: "1", "aria-label": "Progress" });
  const stop = element("button", { type: "button" }, "Cancel");
  const go = element("button", { type: "button", class: "main" }, "Start the scan");
  const buttons = element("p", { class: "row" }, stop);
  stop.addEventListener("click", () => mine.abort());
  const agree = (words, isAsked) => {
    said.textContent = words;
    if (!isAsked) return null;
    buttons.prepend(go);
    return new Promise((resolve, reject) => {
      go.addEventListener("click", () => {
        if (document.activeElement === go) stop.focus();
        go.remove();
        resolve();
      });
      mine.signal.addEventListener("abort", () => reject(new DOMException("Cancelled", "AbortError")));
    });
  };
  $(id).hidden = false;
  $(`${id}-save`).hidden = true;
  view.replaceChildren(bar, said, buttons);
  said.textContent = "Waiting for the server.";
  $(id).scrollIntoView({ block: "nearest" });
  try {
    await work(
      mine.signal,
      (share, words) => {
        bar.value = share;
        said.textContent = words;
      },
      agree,
    );
    $(`${id}-save`).hidden = false;
  } catch (error) {
    if (running !== mine) return; // another sequence has been chosen
    if (error.name === "AbortError") fill(id, element("p", { role: "status" }, "Cancelled."));
    else {
      const words = error.code === "no_contacts" ? NO_CONTACTS(model.model) : error.message;
      fill(id, element("p", { class: "error", role: "alert" }, words));
    }
  }
}

$("ask-scan").addEventListener("click", () => show("scan", scan));
$("ask-contacts").addEventListener("click", () => show("contacts", contacts));
for (const id of ["scan", "contacts"]) {
  $(`${id}-save`).addEventListener("click", () => {
    save(csvOf(tables[id]()), `${record.name.replace(/[^\w.-]+/g, "_")}_${id}.csv`);
  });
}
