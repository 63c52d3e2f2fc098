// Tables with a header: CSV and TSV, with sequences in one column.

const SEQUENCE = /^(((protein|aa|amino_?acid|full|target|mutated|mutant|peptide)_?)?(sequence|seq)s?|sequence_aa|peptide)$/;
const NAME = /^(ids?|identifier|(seq|sequence|uniprot)_id|(uniprot_)?accession|entry|(entry_)?name)$/;
const MISSING = /^(n\/?a|nan|null|none|#n\/a|<na>)?$/i;
const RESIDUES = /^([A-IK-Z]|<mask>)+\*?$/;
const FEWEST_RESIDUES = 10; // of a text in a header that is taken for a sequence
export const NUMBERED = "(numbered)";

/**
 * Read a table: {records: [{name, fields, sequence, from, to}], columns: {all, sequence, name}}, or null if the
 * text is none. chosen: names of the columns of sequences and names; without them, they are guessed.
 */
export function readTable(text, chosen) {
  const [first] = text.replace(/^(\s*#[^\r\n]*)*\s*/, "").split(/[\r\n]/, 1);
  const times = (sign) => first.split(sign).length;
  const [delimiter] = ["\t", ",", ";"].sort((a, b) => times(b) - times(a));
  if (!first.includes(delimiter) && !SEQUENCE.test(plain(unquoted(first)))) return null;
  const lines = linesOf(text, delimiter);
  if (lines.length < 2) return null;
  const hasHeader = !lines[0].cells.some((cell) => cell.length >= FEWEST_RESIDUES && RESIDUES.test(cell));
  const width = lines[0].cells.length;
  const all = [];
  for (let k = 0; k < width; k++) {
    const name = (hasHeader && lines[0].cells[k]) || `column ${k + 1}`;
    all.push(all.includes(name) ? `${name} (${k + 1})` : name);
  }
  const rows = hasHeader ? lines.slice(1) : lines;
  const long = rows.find(({ cells }) => cells.length > width && cells.slice(width).some(Boolean));
  if (long) {
    const number = text.slice(0, long.from).split(/\r\n|\r|\n/).length;
    throw new Error(
      `Line ${number} has ${long.cells.length} cells, and the first line has ${width}. Put cells that hold “${delimiter}” in double quotes.`,
    );
  }
  const columns = all.map((_, k) => rows.map(({ cells }) => known(cells[k], delimiter)));
  const isUnique = (k) => new Set(columns[k]).size === rows.length && columns[k].every((cell) => cell && !isNumber(cell));
  const guessed = all.findIndex((name) => SEQUENCE.test(plain(name)));
  const sequence = all.includes(chosen.sequence) ? all.indexOf(chosen.sequence) : guessed >= 0 ? guessed : likeliest(columns);
  const rest = [...all.keys()].filter((k) => k !== sequence);
  const name =
    chosen.name === NUMBERED
      ? undefined
      : (rest.find((k) => all[k] === chosen.name) ?? rest.find((k) => NAME.test(plain(all[k]))) ?? rest.find(isUnique));
  const fields = rest.filter((k) => k !== name);
  const records = rows.map(({ from, to }, i) => ({
    name: (name !== undefined && columns[name][i]) || `sequence ${i + 1}`,
    fields: Object.fromEntries(fields.filter((k) => columns[k][i]).map((k) => [all[k], columns[k][i]])),
    sequence: columns[sequence][i],
    from,
    to,
  }));
  return { records, columns: { all, sequence: all[sequence], name: name === undefined ? NUMBERED : all[name] } };
}

/** The column with the most cells that may be sequences, and the most letters in them. */
function likeliest(columns) {
  const residues = columns.map((column) => column.filter((cell) => RESIDUES.test(cell.toUpperCase())));
  const letters = residues.map((cells) => cells.join("").length);
  const [best] = [...columns.keys()].sort(
    (a, b) => residues[b].length - residues[a].length || letters[b] - letters[a],
  );
  return best;
}

export function isNumber(text) {
  return text.trim() !== "" && Number.isFinite(Number(text));
}

/** The cells of each line that is not blank and no comment, as RFC 4180 quotes them; from and to locate it in the text. */
function linesOf(text, delimiter) {
  const cell = new RegExp(
    `(?:[ \\uFEFF]*"([^"]*(?:""[^"]*)*)"[^${delimiter}\\r\\n]*|([^${delimiter}\\r\\n]*))(${delimiter}|\\r\\n|\\r|\\n|$)`,
    "y",
  );
  const lines = [];
  let cells = [];
  let from = 0;
  for (let match; (match = cell.exec(text)); ) {
    cells.push((match[1]?.replaceAll('""', '"') ?? match[2]).trim());
    if (match[3] === delimiter) continue;
    if (cells.some(Boolean) && !cells[0].startsWith("#")) lines.push({ cells, from, to: cell.lastIndex - match[3].length });
    cells = [];
    from = cell.lastIndex;
    if (!match[3]) break;
  }
  return lines;
}

/** A cell; "" for a missing value. Where semicolons part cells, a decimal comma may be in them. */
function known(cell = "", delimiter = ",") {
  if (MISSING.test(cell)) return "";
  return delimiter === ";" && /^[-+]?\d+,\d+$/.test(cell) ? cell.replace(",", ".") : cell;
}

function plain(name) {
  return name.trim().toLowerCase().replace(/[\s.-]+/g, "_");
}

function unquoted(text) {
  return text.replace(/^\uFEFF?"(.*)"$/, "$1");
}
