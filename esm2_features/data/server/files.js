// Files for other programs: CSV, npz and Parquet, as `esm2-features embed` writes them, and with the
// sequences.

const utf8 = new TextEncoder();

/** A table is {ids, sequences, features, rows}: names of rows and columns, and Float32Arrays. */
export const WRITERS = { csv, npz, parquet };

/** Have the browser save a file. */
export function save(parts, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(parts));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// ------------------------------------------------------------------ CSV

/** Write lines of cells; what holds a comma, a quote or a line's end is quoted. */
export function csvOf(lines) {
  return lines.map((cells) => `${cells.map(quoted).join(",")}\n`);
}

function quoted(cell) {
  const text = String(cell);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function csv({ ids, sequences, features, rows }) {
  const lines = rows.map((row, i) => [ids[i], sequences[i], ...Array.from(row, shortest)]);
  return csvOf([["id", "sequence", ...features], ...lines]);
}

/** As few digits as it takes to read the same float32 back. */
export function shortest(value) {
  for (let digits = 6; digits < 9; digits++) {
    const text = String(Number(value.toPrecision(digits)));
    if (Math.fround(Number(text)) === value) return text;
  }
  return String(Number(value.toPrecision(9)));
}

// ------------------------------------------------------------------ npz

function npz({ ids, sequences, features, rows }) {
  const flat = new Float32Array(rows.length * features.length);
  rows.forEach((row, i) => flat.set(row, i * features.length));
  return zip([
    ["id.npy", textArray(ids)],
    ["sequence.npy", textArray(sequences)],
    ["embedding.npy", npy("<f4", `(${rows.length}, ${features.length})`, flat)],
    ["feature.npy", textArray(features)],
  ]);
}

/** NumPy's text of a fixed width: four bytes for each character. */
function textArray(texts) {
  const points = texts.map((text) => Array.from(text, (letter) => letter.codePointAt(0)));
  const width = Math.max(1, ...points.map((letters) => letters.length));
  const flat = new Uint32Array(texts.length * width);
  points.forEach((letters, i) => flat.set(letters, i * width));
  return npy(`<U${width}`, `(${texts.length},)`, flat);
}

function npy(kind, shape, array) {
  const said = `{'descr': '${kind}', 'fortran_order': False, 'shape': ${shape}, }`;
  const length = Math.ceil((said.length + 11) / 64) * 64 - 10;
  const header = utf8.encode(`${said.padEnd(length - 1)}\n`);
  const start = [0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0, length & 255, length >> 8];
  return joined([Uint8Array.from(start), header, bytesOf(littleEndian(array))]);
}

/** Zip without compression, which does little for such numbers. */
function zip(files) {
  const parts = [];
  const list = [];
  let at = 0;
  for (const [name, bytes] of files) {
    const path = utf8.encode(name);
    // Version, flags (names are UTF-8), method, time and date (1 January 1980), checksum, sizes.
    const facts = [
      [20, 2], [0x800, 2], [0, 2], [0, 2], [0x21, 2], [crc32(bytes), 4],
      [bytes.length, 4], [bytes.length, 4], [path.length, 2], [0, 2],
    ];
    const start = joined([fields([[0x04034b50, 4], ...facts]), path]);
    parts.push(start, bytes);
    list.push(
      fields([[0x02014b50, 4], [20, 2], ...facts, [0, 2], [0, 2], [0, 2], [0, 4], [at, 4]]),
      path,
    );
    at += start.length + bytes.length;
  }
  const size = list.reduce((sum, part) => sum + part.length, 0);
  const n = files.length;
  const end = [[0x06054b50, 4], [0, 2], [0, 2], [n, 2], [n, 2], [size, 4], [at, 4], [0, 2]];
  return [...parts, ...list, fields(end)];
}

function crc32(bytes) {
  let crc = -1;
  for (const byte of bytes) crc = (crc >>> 8) ^ CRC[(crc ^ byte) & 255];
  return ~crc >>> 0;
}

const CRC = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n >>> 0;
});

// ------------------------------------------------------------------ Parquet

const FLOAT_TYPE = 4, BYTES_TYPE = 6; // physical types
const REQUIRED = 0, REPEATED = 2;
const UTF8_TEXT = 0, LIST = 3; // converted types
const PLAIN = 0, RLE = 3; // encodings

/** Columns id and sequence, text, and embedding, lists of float32: one row group, one page each. */
function parquet({ ids, sequences, features, rows }) {
  const d = features.length;
  const columns = [
    { path: ["id"], type: BYTES_TYPE, ...texts(ids) },
    { path: ["sequence"], type: BYTES_TYPE, ...texts(sequences) },
    { path: ["embedding", "list", "element"], type: FLOAT_TYPE, ...lists(rows, d) },
  ];
  const magic = utf8.encode("PAR1");
  const parts = [magic];
  let at = magic.length;
  const chunks = columns.map(({ path, type, values, count }) => {
    const header = struct([
      [1, I32, 0], // a data page
      [2, I32, values.length],
      [3, I32, values.length],
      [5, STRUCT, struct([[1, I32, count], [2, I32, PLAIN], [3, I32, RLE], [4, I32, RLE]])],
    ]);
    const size = header.length + values.length;
    const facts = struct([
      [1, I32, type],
      [2, LISTED, listed(I32, [varint(zigzag(PLAIN)), varint(zigzag(RLE))])],
      [3, LISTED, listed(BINARY, path.map(text))],
      [4, I32, 0], // not compressed
      [5, I64, count],
      [6, I64, size],
      [7, I64, size],
      [9, I64, at],
    ]);
    const chunk = { size, bytes: struct([[2, I64, at], [3, STRUCT, facts]]) };
    parts.push(header, values);
    at += size;
    return chunk;
  });
  const schema = [
    struct([[4, BINARY, text("schema")], [5, I32, 3]]),
    ...["id", "sequence"].map((name) =>
      struct([[1, I32, BYTES_TYPE], [3, I32, REQUIRED], [4, BINARY, text(name)], [6, I32, UTF8_TEXT]]),
    ),
    struct([[3, I32, REQUIRED], [4, BINARY, text("embedding")], [5, I32, 1], [6, I32, LIST]]),
    struct([[3, I32, REPEATED], [4, BINARY, text("list")], [5, I32, 1]]),
    struct([[1, I32, FLOAT_TYPE], [3, I32, REQUIRED], [4, BINARY, text("element")]]),
  ];
  const group = struct([
    [1, LISTED, listed(STRUCT, chunks.map(({ bytes }) => bytes))],
    [2, I64, chunks.reduce((sum, { size }) => sum + size, 0)],
    [3, I64, rows.length],
  ]);
  const about = struct([
    [1, BINARY, text("feature_names")],
    [2, BINARY, text(JSON.stringify(features))],
  ]);
  const footer = struct([
    [1, I32, 1],
    [2, LISTED, listed(STRUCT, schema)],
    [3, I64, rows.length],
    [4, LISTED, listed(STRUCT, [group])],
    [5, LISTED, listed(STRUCT, [about])],
    [6, BINARY, text("esm2-features")],
  ]);
  return [...parts, footer, fields([[footer.length, 4]]), magic];
}

function texts(values) {
  const parts = values.flatMap((value) => {
    const bytes = utf8.encode(value);
    return [fields([[bytes.length, 4]]), bytes];
  });
  return { values: joined(parts), count: values.length };
}

/** Lists of d numbers: levels say where each begins (0, then 1 for its others). */
function lists(rows, d) {
  const begins = rows.flatMap(() => [run(1, 0), ...(d > 1 ? [run(d - 1, 1)] : [])]);
  const levels = [joined(begins), run(rows.length * d, 1)];
  const values = levels.flatMap((bytes) => [fields([[bytes.length, 4]]), bytes]);
  values.push(...rows.map((row) => bytesOf(littleEndian(row))));
  return { values: joined(values), count: rows.length * d };
}

function run(count, value) {
  return joined([varint(2 * count), Uint8Array.of(value)]);
}

// Thrift's compact protocol, as far as Parquet's footer needs it.
const I32 = 5, I64 = 6, BINARY = 8, LISTED = 9, STRUCT = 12;

function struct(members) {
  const parts = [];
  let last = 0;
  for (const [number, kind, value] of members) {
    parts.push(Uint8Array.of(((number - last) << 4) | kind));
    parts.push(kind === I32 || kind === I64 ? varint(zigzag(value)) : value);
    last = number;
  }
  return joined([...parts, Uint8Array.of(0)]);
}

function listed(kind, items) {
  const n = items.length;
  const start = n < 15 ? Uint8Array.of((n << 4) | kind) : joined([Uint8Array.of(0xf0 | kind), varint(n)]);
  return joined([start, ...items]);
}

function text(words) {
  const bytes = utf8.encode(words);
  return joined([varint(bytes.length), bytes]);
}

function zigzag(value) {
  return 2 * value; // nothing here is negative
}

function varint(value) {
  const bytes = [];
  for (; value > 127; value = Math.floor(value / 128)) bytes.push((value % 128) | 128);
  return Uint8Array.from([...bytes, value]);
}

// ------------------------------------------------------------------ bytes

/** Numbers of so many bytes each, the lowest byte first. */
function fields(numbers) {
  return Uint8Array.from(
    numbers.flatMap(([value, size]) =>
      Array.from({ length: size }, (_, i) => Math.floor(value / 256 ** i) % 256),
    ),
  );
}

function littleEndian(array) {
  if (new Uint8Array(Uint16Array.of(1).buffer)[0]) return array;
  const copy = array.slice();
  for (let i = 0, all = bytesOf(copy); i < all.length; i += 4) all.subarray(i, i + 4).reverse();
  return copy;
}

function bytesOf(array) {
  return new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
}

function joined(parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
