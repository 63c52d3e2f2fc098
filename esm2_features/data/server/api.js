// Requests to the server.

const KEPT = "esm2-features-token";
const COME_AGAIN = ["busy", "starting", "too_many_requests"];
const MOST_TIMES = 20; // tries

export class ServerError extends Error {
  constructor(status, facts) {
    super(facts.error);
    Object.assign(this, { status, code: facts.code, row: facts.row, limit: facts.limit });
  }
}

export const token = {
  get value() {
    return sessionStorage.getItem(KEPT) ?? "";
  },
  set value(text) {
    if (text) sessionStorage.setItem(KEPT, text);
    else sessionStorage.removeItem(KEPT);
  },
};

/** Send a request, and again when the server is busy. Returns JSON, or as "text". Throws ServerError or AbortError. */
export async function ask(path, { body, signal, as = "json", onWait = () => {} } = {}) {
  for (let times = 1; ; times++) {
    const headers = token.value ? { Authorization: `Token ${token.value}` } : {};
    const how = { headers, signal, referrerPolicy: "no-referrer" };
    if (body !== undefined) {
      Object.assign(how, { method: "POST", body: JSON.stringify(body) });
      headers["Content-Type"] = "application/json";
    }
    let response;
    try {
      response = await fetch(path, how);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ServerError(0, {
        code: "unreachable",
        error: "The server cannot be reached. Check that it is running, then continue.",
      });
    }
    if (response.ok) return response[as]();
    const facts = await response.json().catch(() => ({
      code: "http_error",
      error: `The server answered with status ${response.status}.`,
    }));
    const after = Number(response.headers.get("retry-after"));
    if (!COME_AGAIN.includes(facts.code) || !after || times === MOST_TIMES) {
      throw new ServerError(response.status, facts);
    }
    const seconds = Math.min(after, 60);
    onWait(seconds);
    await pause(1000 * seconds, signal);
  }
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(new DOMException("Cancelled", "AbortError"));
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, milliseconds);
    signal?.addEventListener("abort", stop, { once: true });
  });
}

/**
 * Send many items in portions that take about a second each.
 *
 * sizes: cost of each item. most: items in a portion. limit: largest cost of a portion, unless it is
 * a single item. send(from, to) sends a portion; one that is too large for the server is halved.
 * onDone(to) is called after each portion.
 */
export async function inPortions(sizes, { most, limit, send, onDone }) {
  let budget = Math.min(limit, 1000);
  let from = 0;
  while (from < sizes.length) {
    let to = from + 1;
    let cost = sizes[from];
    while (to < sizes.length && to - from < most && cost + sizes[to] <= budget) cost += sizes[to++];
    const begun = performance.now();
    try {
      await send(from, to);
    } catch (error) {
      if (to - from > 1 && [413, 504].includes(error.status)) {
        budget = cost / 2;
        limit = Math.min(limit, budget);
        continue;
      }
      throw error;
    }
    const seconds = (performance.now() - begun) / 1000;
    if (seconds < 0.5) budget = Math.min(limit, 2 * budget);
    if (seconds > 2) budget = Math.max(1, budget / 2);
    from = to;
    onDone(from);
  }
}
