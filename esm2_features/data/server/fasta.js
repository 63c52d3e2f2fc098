// Sequences as text: FASTA, and the fields of its headers; lines; or a table.

import { readTable } from "./table.js";

/**
 * Read sequences: FASTA; without its headers, a table, or one sequence in each line.
 * Returns {records: [{name, header, sequence, from, to}], columns}; from and to locate a record in the text, and
 * columns are those of a table. Throws an Error if a line of a table has too many cells.
 */
export function parse(text, chosen = {}) {
  const plain = !/^\s*>/m.test(text);
  const table = plain ? readTable(text, chosen) : null;
  const records = table?.records ?? recordsOf(text, plain);
  const seen = new Map(); // names to how often they have been seen
  for (const record of records) {
    const { name } = record;
    let times = seen.get(name) ?? 0;
    while (seen.has(record.name)) record.name = `${name} (${++times})`;
    seen.set(name, Math.max(1, times));
    seen.set(record.name, 1);
    record.sequence = tidy(record.sequence);
    record.length = residuesOf(record.sequence).length;
    record.fields = Object.assign(Object.create(null), record.fields ?? fieldsOf(record.header));
    record.header ??= Object.entries(record.fields).map(([key, value]) => `${key}: ${value}`).join(", ");
  }
  return { records, columns: table?.columns };
}

function recordsOf(text, plain) {
  const records = [];
  const lines = /[^\r\n]*(\r\n|\r|\n|$)/g;
  let last = null;
  for (let match; (match = lines.exec(text)) && match[0]; ) {
    const line = match[0].trim();
    const [from, to] = [match.index, match.index + match[0].trimEnd().length];
    if (!line || line.startsWith(";")) continue;
    if (plain) {
      records.push({ header: `sequence ${records.length + 1}`, sequence: line, from, to });
    } else if (line.startsWith(">")) {
      last = { header: line.slice(1).trim(), sequence: "", from, to };
      records.push(last);
    } else {
      // Lines before the first header are a sequence without a name.
      if (!last) records.push((last = { header: "", sequence: "", from, to }));
      last.sequence += line;
      last.to = to;
    }
  }
  for (const [i, record] of records.entries()) {
    record.name = plain ? record.header : record.header.split(/\s/, 1)[0] || `sequence ${i + 1}`;
  }
  return records;
}

function tidy(line) {
  return line.replace(/\s+/g, "").toUpperCase().replaceAll("<MASK>", "<mask>").replace(/\*$/, "");
}

/** Whether a sequence looks like DNA or RNA, whose letters stand for residues, too. */
export function isNucleotides({ sequence }) {
  return /^[ACGTUN]{20,}$/.test(sequence); // as in the library
}

/** Residues of a sequence; a mask is one. */
export function residuesOf(sequence) {
  return sequence.match(/<mask>|./gu) ?? [];
}

/** The key=value fields of a header; a value ends where the next key begins, as in UniProt's. */
export function fieldsOf(header) {
  const fields = {};
  for (const [, key, value] of header.matchAll(/(?:^|[\s|;])(\w+)=(.*?)(?=[\s|;]+\w+=|$)/g)) {
    fields[key] = value.replace(/^"(.*)"$/, "$1").trim();
  }
  return fields;
}
