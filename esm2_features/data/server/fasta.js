// FASTA, and the fields of its headers.

/**
 * Read sequences: FASTA, or one in each line where there is no header.
 * Returns [{name, header, sequence, from, to}]; from and to locate a record in the text.
 */
export function parse(text) {
  const records = [];
  const plain = !/^\s*>/m.test(text);
  const lines = /[^\r\n]*(\r\n|\r|\n|$)/g;
  let last = null;
  for (let match; (match = lines.exec(text)) && match[0]; ) {
    const line = match[0].trim();
    const [from, to] = [match.index, match.index + match[0].trimEnd().length];
    if (!line || line.startsWith(";")) continue;
    if (plain) {
      records.push({ header: `sequence ${records.length + 1}`, sequence: tidy(line), from, to });
    } else if (line.startsWith(">")) {
      last = { header: line.slice(1).trim(), sequence: "", from, to };
      records.push(last);
    } else {
      // Lines before the first header are a sequence without a name.
      if (!last) records.push((last = { header: "", sequence: "", from, to }));
      last.sequence += tidy(line);
      last.to = to;
    }
  }
  const seen = new Map();
  for (const [i, record] of records.entries()) {
    const name = plain ? record.header : record.header.split(/\s/, 1)[0] || `sequence ${i + 1}`;
    const times = (seen.get(name) ?? 0) + 1;
    seen.set(name, times);
    record.name = times === 1 ? name : `${name} (${times})`;
    record.fields = fieldsOf(record.header);
    record.length = residuesOf(record.sequence).length;
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
