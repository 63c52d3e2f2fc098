// Principal components and neighbours, of rows of numbers.

const COMPONENTS = 2;
const WIDTH = 8; // directions to iterate, so that the first two converge soon
const MOST_ROUNDS = 300;
const TOLERANCE = 1e-7;

/**
 * Principal components, by subspace iteration on the centred rows.
 * Returns {points: [[x, y]], explained: [share, share]}; shares are of the variance. The largest
 * number of each component is positive. Yields to the page between rounds.
 */
export async function pca(rows) {
  const [n, d] = [rows.length, rows[0].length];
  const mean = new Float64Array(d);
  for (const row of rows) for (let j = 0; j < d; j++) mean[j] += row[j] / n;
  const X = rows.map((row) => Float64Array.from(row, (value, j) => value - mean[j]));
  const total = X.reduce((sum, row) => sum + dot(row, row), 0);
  const k = Math.min(WIDTH, n, d);
  let seed = 1;
  const random = () => (seed = (seed * 16807) % 2147483647) / 2147483647 - 0.5;
  let V = orthonormal(Array.from({ length: k }, () => Float64Array.from({ length: d }, random)));
  let values = new Float64Array(k);
  for (let round = 0; round < MOST_ROUNDS; round++) {
    const W = V.map(() => new Float64Array(d)); // X'X V
    for (const row of X) {
      for (let c = 0; c < k; c++) add(W[c], row, dot(row, V[c]));
    }
    // Rayleigh and Ritz: the best directions within the subspace.
    const small = V.map((v) => W.map((w) => dot(v, w)));
    const found = jacobi(small);
    const turned = found.vectors.map((vector) => {
      const sum = new Float64Array(d);
      for (let c = 0; c < k; c++) add(sum, W[c], vector[c]);
      return sum;
    });
    const change = Math.max(
      ...found.values.slice(0, COMPONENTS).map((value, c) => Math.abs(value - values[c])),
    );
    values = found.values;
    V = orthonormal(turned);
    if (change <= TOLERANCE * TOLERANCE * total) break;
    if (n * d > 1e5) await new Promise((resolve) => setTimeout(resolve));
  }
  const axes = V.slice(0, COMPONENTS).map((axis) => {
    const largest = axis.reduce((best, value) => (Math.abs(value) > Math.abs(best) ? value : best), 0);
    return largest < 0 ? axis.map((value) => -value) : axis;
  });
  while (axes.length < COMPONENTS) axes.push(new Float64Array(d));
  const points = X.map((row) => axes.map((axis) => dot(row, axis)));
  const explained = axes.map((_, c) => {
    const variance = points.reduce((sum, point) => sum + point[c] ** 2, 0);
    return total > 0 ? variance / total : 0;
  });
  return { points, explained };
}

/** The rows that are nearest to one by the cosine: [{index, cosine}], nearest first. */
export function nearest(rows, chosen, count) {
  const norms = rows.map((row) => Math.sqrt(dot(row, row)) || 1);
  return rows
    .map((row, index) => ({
      index,
      cosine: dot(row, rows[chosen]) / (norms[index] * norms[chosen]),
    }))
    .filter(({ index }) => index !== chosen)
    .sort((a, b) => b.cosine - a.cosine || a.index - b.index)
    .slice(0, count);
}

function dot(a, b) {
  let sum = 0;
  for (let j = 0; j < a.length; j++) sum += a[j] * b[j];
  return sum;
}

function add(sum, row, factor) {
  for (let j = 0; j < sum.length; j++) sum[j] += factor * row[j];
}

/** Gram and Schmidt, twice, for the sake of rounding; what depends on others becomes 0. */
function orthonormal(vectors) {
  const done = [];
  for (const vector of vectors) {
    const before = Math.sqrt(dot(vector, vector));
    for (let times = 0; times < 2; times++) {
      for (const other of done) add(vector, other, -dot(vector, other));
    }
    const norm = Math.sqrt(dot(vector, vector));
    const factor = norm > 1e-12 * before && norm > 0 ? 1 / norm : 0;
    done.push(vector.map((value) => value * factor));
  }
  return done;
}

/** Eigenvalues of a small symmetric matrix, largest first, and its eigenvectors. */
function jacobi(matrix) {
  const k = matrix.length;
  const A = matrix.map((row, i) => row.map((value, j) => (value + matrix[j][i]) / 2));
  const V = A.map((_, i) => A.map((_, j) => Number(i === j)));
  for (let sweep = 0; sweep < 50; sweep++) {
    let off = 0;
    let on = 0;
    for (let p = 0; p < k; p++) {
      on += A[p][p] ** 2;
      for (let q = p + 1; q < k; q++) off += A[p][q] ** 2;
    }
    if (off <= 1e-30 * on) break;
    for (let p = 0; p < k; p++) {
      for (let q = p + 1; q < k; q++) {
        if (A[p][q] === 0) continue;
        const theta = (A[q][q] - A[p][p]) / (2 * A[p][q]);
        const t = (theta < 0 ? -1 : 1) / (Math.abs(theta) + Math.hypot(theta, 1));
        const c = 1 / Math.hypot(t, 1);
        const s = t * c;
        for (let i = 0; i < k; i++) {
          [A[i][p], A[i][q]] = [c * A[i][p] - s * A[i][q], s * A[i][p] + c * A[i][q]];
        }
        for (let i = 0; i < k; i++) {
          [A[p][i], A[q][i]] = [c * A[p][i] - s * A[q][i], s * A[p][i] + c * A[q][i]];
          [V[i][p], V[i][q]] = [c * V[i][p] - s * V[i][q], s * V[i][p] + c * V[i][q]];
        }
      }
    }
  }
  const order = A.map((_, i) => i).sort((i, j) => A[j][j] - A[i][i]);
  return { values: order.map((i) => A[i][i]), vectors: order.map((i) => V.map((row) => row[i])) };
}
