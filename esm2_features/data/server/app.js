// The form, and the progress of embedding.

import { ask, inPortions, ServerError, token } from "./api.js";
import { isNucleotides, parse, residuesOf } from "./fasta.js";
import { $, element } from "./parts.js";
import { showResults } from "./results.js";
import { NUMBERED } from "./table.js";

const MOST_TEXT = 5_000_000; // characters that the page can handle
const RESIDUES = 20_000; // of a portion, at most

let models = [];
const MOST_LISTED = 20; // wrong sequences
const KNOWN = "ESM-2 knows the 20 amino acids, X, B, U, Z, O, and <mask>.";
const EMPTY = "It is empty. Add its residues, or leave it out.";

let run = null; // {records, rows, left, model, layer, pooling}; left: Map of rows left out to reasons
let going = null;
let chosen = {}; // columns of a table: {sequence, name}
let isGuarded = Boolean(token.value); // whether the server asks for a token

// ------------------------------------------------------------------ models

async function readModels() {
  try {
    ({ models } = await ask("api/v3/models/"));
  } catch (error) {
    $("start").disabled = true;
    if (error.status === 401) askForToken();
    else trouble(error.message);
    return;
  }
  $("trouble").hidden = true;
  $("start").disabled = false;
  $("model").replaceChildren(
    ...models.map(({ model, layers, dim }) =>
      element("option", { value: model }, `${model} (${layers} layers, ${dim} numbers)`),
    ),
  );
  readLayers();
}

function askForToken() {
  isGuarded = true;
  $("token-part").open = true;
  trouble(
    token.value
      ? "The server does not know this token. Check that it is complete, or ask whoever runs the server for one."
      : "This server asks for a token. Type it in the field “Token”, and press “Use token”.",
  );
  $("token").focus();
}

/** Show a page of the server that a link cannot open, because only a request can send the token. */
async function showServed(link) {
  try {
    const text = await ask(link.getAttribute("href"), { as: "text" });
    const bare = text.replace(/<style>.*?<\/style>/s, ""); // the policy forbids it here
    const page = new DOMParser().parseFromString(bare, "text/html").querySelector("main");
    page?.querySelector("h1").remove();
    $("served-text").replaceChildren(...(page?.childNodes ?? [element("pre", {}, text)]));
  } catch (error) {
    if (error.status === 401) askForToken();
    else trouble(error.message);
    return;
  }
  $("served-close").onclick = () => {
    $("served").hidden = true;
    link.focus();
  };
  $("served-title").textContent = link.textContent;
  $("served").hidden = false;
  $("served-title").focus();
}

function readLayers() {
  const model = models.find(({ model }) => model === $("model").value);
  const layers = Array.from({ length: model.layers + 1 }, (_, i) => model.layers - i);
  const words = { [model.layers]: " (last)", 0: " (before the first block)" };
  $("layer").replaceChildren(
    ...layers.map((layer) => element("option", { value: String(layer) }, `${layer}${words[layer] ?? ""}`)),
  );
  hint(model);
}

function hint(model) {
  const hints = [];
  if (model.model === "mini") hints.push("mini is a small demonstration model, not ESM-2, and not for science.");
  if (!model.in_memory) hints.push("The server loads this model at the first request, which may take a while.");
  $("model-hint").textContent = hints.join(" ");
}

// ------------------------------------------------------------------ sequences

/** The sequences of the form; none, and a message, if they cannot be read. */
function read(onError = () => {}) {
  try {
    return parse($("text").value, chosen);
  } catch (error) {
    onError(error.message);
    return { records: null };
  }
}

function count() {
  let problem = "";
  const { records: found, columns } = read((words) => (problem = words));
  const records = found ?? [];
  $("columns").hidden = !columns;
  for (const kind of columns ? ["sequence", "name"] : []) {
    const words = kind === "name" ? [NUMBERED, ...columns.all] : columns.all;
    $(`${kind}-column`).replaceChildren(...words.map((word) => element("option", { value: word }, word)));
    $(`${kind}-column`).value = columns[kind];
  }
  const genes = records.filter(isNucleotides);
  const others = genes.length > 1 ? ` (and ${genes.length - 1} more)` : "";
  $("dna").textContent = genes.length
    ? `${genes[0].name}${others} holds the letters ACGTUN only: is it DNA? ESM-2 reads proteins. Translate it first.`
    : "";
  if (!records.length) {
    $("count").textContent = problem;
    return;
  }
  const lengths = records.map(({ length }) => length);
  const [low, high] = lengths.reduce(([a, b], n) => [Math.min(a, n), Math.max(b, n)], [Infinity, 0]);
  const range = low === high ? `${low}` : `${low} to ${high}`;
  $("count").textContent = `${records.length} ${records.length === 1 ? "sequence" : "sequences"} of ${range} residues`;
}

async function readFile(file) {
  const zipped = /\.gz$/i.test(file.name);
  const tooLarge = `${file.name} is too large for this page. Use the command line: esm2-features embed.`;
  if (file.size > MOST_TEXT) return trouble(tooLarge);
  let text;
  try {
    const stream = zipped ? file.stream().pipeThrough(new DecompressionStream("gzip")) : file.stream();
    text = decoded(await new Response(stream).arrayBuffer());
  } catch {
    return trouble(`${file.name} cannot be read. Check that it is a text file, and complete if it is compressed.`);
  }
  if (text.length > MOST_TEXT) return trouble(tooLarge);
  $("trouble").hidden = true;
  $("text").value = text;
  chosen = {};
  count();
}

/** The text of a file: UTF-16 as spreadsheets write it, UTF-8, or else Windows-1252. */
function decoded(bytes) {
  const [first, second] = new Uint8Array(bytes, 0, Math.min(2, bytes.byteLength));
  const isWide = first + second === 0xff + 0xfe && Math.abs(first - second) === 1;
  try {
    return new TextDecoder(isWide ? `utf-16${first > second ? "le" : "be"}` : "utf-8", { fatal: true }).decode(bytes);
  } catch {
    return new TextDecoder("windows-1252").decode(bytes);
  }
}

// ------------------------------------------------------------------ embedding

async function start() {
  const { records } = read(trouble);
  if (!records) return;
  if (!records.length) {
    trouble("There are no sequences. Paste some, choose a file, or show the example.");
    $("text").focus();
    return;
  }
  const model = models.find(({ model }) => model === $("model").value);
  run = {
    records,
    rows: new Array(records.length).fill(null),
    left: new Map(),
    model,
    layer: Number($("layer").value),
    pooling: $("pooling").value,
  };
  $("results").hidden = true; // of the sequences before
  await goOn();
}

async function goOn() {
  const mine = run;
  const { model, records, rows, left } = mine;
  const waiting = records.flatMap((_, i) => (rows[i] || left.has(i) ? [] : [i]));
  const done = () => rows.reduce((n, row) => n + Boolean(row), 0);
  const tell = (more = "") => {
    $("bar").value = done() / Math.max(1, records.length - left.size);
    $("progress").textContent = `${done()} of ${records.length - left.size} sequences${more}`;
  };
  going = new AbortController();
  busy(true);
  tell();
  const refused = new Map(); // rows to reasons
  try {
    const path = `api/v3/schema/${encodeURIComponent(model.model)}/encode/`;
    model.schema ??= (await ask(path, { signal: going.signal })).properties.items;
    const residue = new RegExp(model.schema.items.properties.sequence.pattern);
    for (const i of waiting) {
      const letters = residuesOf(records[i].sequence);
      const at = letters.findIndex((letter) => !residue.test(letter));
      if (at >= 0) refused.set(i, `It holds ${quoted(letters[at])} at position ${at + 1}, which stands for no residue. ${KNOWN}`);
      else if (!letters.length) refused.set(i, EMPTY);
    }
    // Nothing is computed until the user has decided about these.
    if (!refused.size) await inPortions(waiting.map((i) => records[i].length), {
      most: model.schema.maxItems,
      limit: RESIDUES,
      send: async (from, to) => {
        const onWait = (seconds) => tell(`; the server is busy, trying again in ${seconds} s`);
        const word = mine.pooling === "mean" ? "embeddings" : `${mine.pooling}_embeddings`;
        for (;;) {
          const which = waiting.slice(from, to).filter((i) => !refused.has(i));
          if (!which.length) return;
          const body = {
            items: which.map((i) => ({ sequence: records[i].sequence })),
            params: { include: [mine.pooling], repr_layers: [mine.layer] },
          };
          const how = { body, signal: going.signal, onWait };
          try {
            const { results } = await ask(`api/v3/${encodeURIComponent(model.model)}/encode/`, how);
            results.forEach((result, k) => {
              rows[which[k]] = Float32Array.from(result[word][0].embedding);
            });
            return;
          } catch (error) {
            if (error.row === undefined) throw error;
            // What is wrong with a sequence stops no others; one that is too long tells the limit.
            for (const i of waiting) {
              const isTooLong = records[i].length > (error.limit ?? Infinity);
              if (i === which[error.row] || isTooLong) refused.set(i, reasonOf(error, records[i]));
            }
          }
        }
      },
      onDone: () => tell(),
    });
  } catch (error) {
    busy(false);
    if (error.name === "AbortError") trouble(`Cancelled: ${done()} of ${records.length} are done.`, { canGoOn: true });
    else if (error instanceof ServerError) {
      trouble(error.message, { canGoOn: true });
      if (error.status === 401) $("token-part").open = true;
    } else throw error;
  }
  going = null;
  busy(false);
  model.in_memory ||= done() > 0;
  if ($("model").value === model.model) hint(model);
  if (refused.size) explain(refused);
  const there = records.flatMap((_, i) => (rows[i] ? [i] : []));
  if (!there.length && left.size === records.length) trouble("All sequences are left out. Mend one, or paste others.");
  if (there.length) {
    const part = {
      records: there.map((i) => records[i]),
      rows: there.map((i) => rows[i]),
      leftOut: [...left].map(([i, reason]) => `${records[i].name}: ${reason}`),
    };
    await showResults({ ...mine, ...part });
    if ($("trouble").hidden) $("results").scrollIntoView({ block: "start" });
  }
}

/** A character, or the code of one that cannot be seen. */
function quoted(letter) {
  const isVisible = /[\p{L}\p{N}\p{P}\p{S}]/u.test(letter);
  return isVisible ? `'${letter}'` : `U+${letter.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
}

/** What the server says of a row, without the number that the row has in the request. */
function reasonOf({ message }, { length }) {
  return message
    .replace(/^The sequence in row \d+/, "It")
    .replace(/^It has \d+ residues/, `It has ${length} residues`);
}

/** Name the sequences that are refused, and offer to leave them out. */
function explain(refused) {
  const all = run.records.length;
  const lines = [...refused].map(([i, reason]) => `Sequence ${i + 1} of ${all}, ${run.records[i].name}: ${reason}`);
  if (lines.length === 1) trouble(lines[0], { refused });
  else trouble(`${lines.length} of ${all} sequences cannot be embedded:`, { refused, lines });
}

function trouble(words, { refused, lines = [], canGoOn } = {}) {
  $("trouble").hidden = false;
  $("trouble-text").textContent = words;
  const hidden = lines.splice(MOST_LISTED).length;
  if (hidden) lines.push(`and ${hidden} more`);
  $("trouble-list").replaceChildren(...lines.map((line) => element("li", {}, line)));
  $("go-on").hidden = !canGoOn;
  $("leave-out").hidden = $("show-row").hidden = !refused;
  if (refused) {
    const isOne = refused.size === 1;
    $("leave-out").textContent = isOne ? "Leave it out" : `Leave out all ${refused.size}`;
    $("show-row").textContent = isOne ? "Show it in the text" : "Show the first in the text";
  }
  $("leave-out").onclick = () => {
    for (const [i, reason] of refused) run.left.set(i, reason);
    goOn();
  };
  $("show-row").onclick = () => {
    // The text may have changed.
    const [row] = refused.keys();
    const record = read().records?.[row] ?? run.records[row];
    $("text").focus();
    $("text").setSelectionRange(record.from, record.to);
    const before = $("text").value.slice(0, record.from).split("\n").length;
    $("text").scrollTop = (before - 3) * parseFloat(getComputedStyle($("text")).lineHeight);
  };
  $("trouble").scrollIntoView({ block: "nearest" });
}

function busy(is) {
  const held = document.activeElement;
  $("work").hidden = $("cancel").hidden = !is;
  $("start").setAttribute("aria-disabled", is); // a disabled button would lose the focus
  if (is) $("trouble").hidden = true;
  if (held?.closest("[hidden]")) $("start").focus({ preventScroll: true });
}

// ------------------------------------------------------------------ events

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!going) start();
});
$("cancel").addEventListener("click", () => going?.abort());
$("go-on").addEventListener("click", goOn);
$("model").addEventListener("change", readLayers);
$("text").addEventListener("input", count);
for (const kind of ["sequence", "name"]) {
  $(`${kind}-column`).addEventListener("change", (event) => {
    chosen[kind] = event.target.value;
    count();
  });
}
$("clear").addEventListener("click", () => {
  $("text").value = "";
  count();
  $("text").focus();
});
$("example").addEventListener("click", async () => {
  $("text").value = await (await fetch("example.fasta")).text();
  count();
});
$("file").addEventListener("change", async () => {
  const [file] = $("file").files;
  if (file) await readFile(file);
  $("file").value = ""; // so that the same file can be chosen again
});
$("token-use").addEventListener("click", () => {
  token.value = $("token").value.trim();
  $("token").value = "";
  readModels();
});
$("token").addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault();
  $("token-use").click();
});
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    $("drop").classList.toggle("over", name === "dragover");
    if (name === "drop" && event.dataTransfer.files.length) readFile(event.dataTransfer.files[0]);
  });
}

for (const link of document.querySelectorAll("footer a")) {
  link.addEventListener("click", (event) => {
    if (!isGuarded) return;
    event.preventDefault();
    showServed(link);
  });
}
count();
await readModels();
