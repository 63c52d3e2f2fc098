// A map of points that can be moved, zoomed, and used with the keyboard.

const BUTTONS = 56; // their width, at the right
const MARGINS = [BUTTONS + 4, 28]; // at the sides; above and below
const EDGE = 20; // nearer to it, a point that is gone to is brought to the middle
const MOST_ZOOM = 500;
const REACH = { mouse: 12, pen: 16, touch: 24 }; // how near a pointer has to be, in pixels
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class PointMap {
  /** look: draws a mark; onChoose(i) and onPoint(i) are called for the chosen point, and the one under the pointer. */
  constructor(canvas, tip, { mark, nameOf, onChoose, onPoint }) {
    Object.assign(this, { canvas, tip, mark, nameOf, onChoose, onPoint });
    this.points = [];
    this.looks = () => ({ colour: "#888", shape: "circle" });
    this.chosen = this.looked = -1;
    this.near = [];
    this.pointers = new Map();
    const on = (name, act, how) => canvas.addEventListener(name, act, how);
    on("keydown", (event) => this.#key(event));
    on("wheel", (event) => this.#wheel(event), { passive: false });
    on("pointerdown", (event) => this.#down(event));
    on("pointermove", (event) => this.#move(event));
    for (const name of ["pointerup", "pointercancel"]) on(name, (event) => this.#up(event));
    on("pointerleave", () => this.pointers.size || this.look(-1));
    on("focus", () => this.#focus());
    on("blur", () => this.look(-1));
    new ResizeObserver(() => this.#resize()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  /** Show other points: [[x, y]]. */
  show(points) {
    this.points = points;
    this.chosen = this.looked = -1;
    this.near = [];
    this.fit();
  }

  /** Show all points. */
  fit() {
    this.zoomed = 1;
    const of = (axis) => this.points.map((point) => point[axis]);
    const range = (values) =>
      values.reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)], [Infinity, -Infinity]);
    const [[left, right], [low, high]] = [range(of(0)), range(of(1))];
    this.centre = [(left + right) / 2, (low + high) / 2];
    this.extent = [right - left, high - low];
    this.#resize();
  }

  /** Zoom about a place of the canvas. */
  zoom(factor, at = [this.width / 2, this.height / 2]) {
    const to = Math.min(MOST_ZOOM, Math.max(0.5, this.zoomed * factor));
    const before = this.#place(at);
    this.zoomed = to;
    const after = this.#place(at);
    this.centre = this.centre.map((value, axis) => value + before[axis] - after[axis]);
    this.draw();
  }

  /** Mark the chosen point, and lines to others. */
  choose(i, near) {
    [this.chosen, this.near] = [i, near];
    this.draw();
  }

  /** Mark the point under the pointer. */
  look(i) {
    if (i === this.looked) return;
    this.looked = i;
    this.onPoint(i);
    this.draw();
  }

  get #scale() {
    const room = [this.width, this.height].map((size, axis) => size - 2 * MARGINS[axis]);
    const fits = room.map((size, axis) => size / (this.extent[axis] || 1e-9));
    return Math.max(1e-12, Math.min(...fits)) * this.zoomed;
  }

  #at([x, y]) {
    const scale = this.#scale;
    return [
      this.width / 2 + (x - this.centre[0]) * scale,
      this.height / 2 - (y - this.centre[1]) * scale,
    ];
  }

  #place([x, y]) {
    const scale = this.#scale;
    return [
      this.centre[0] + (x - this.width / 2) / scale,
      this.centre[1] - (y - this.height / 2) / scale,
    ];
  }

  #resize() {
    const { clientWidth, clientHeight } = this.canvas;
    if (!clientWidth || !this.points.length) return;
    [this.width, this.height] = [clientWidth, clientHeight];
    this.canvas.width = Math.round(clientWidth * devicePixelRatio);
    this.canvas.height = Math.round(clientHeight * devicePixelRatio);
    this.draw();
  }

  draw() {
    if (this.asked || !this.width) return;
    this.asked = requestAnimationFrame(() => {
      this.asked = 0;
      this.#draw();
    });
  }

  #draw() {
    const context = this.canvas.getContext("2d");
    const style = getComputedStyle(this.canvas);
    const [text, panel] = [style.color, style.backgroundColor];
    context.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
    context.clearRect(0, 0, this.width, this.height);
    this.places = this.points.map((point) => this.#at(point));
    const radius = this.points.length > 2000 ? 3 : 5;
    if (this.chosen >= 0) {
      context.strokeStyle = text;
      context.globalAlpha = 0.5;
      for (const i of this.near) {
        context.beginPath();
        context.moveTo(...this.places[this.chosen]);
        context.lineTo(...this.places[i]);
        context.stroke();
      }
      context.globalAlpha = 1;
    }
    context.strokeStyle = panel;
    this.places.forEach(([x, y], i) => {
      if (x < -9 || y < -9 || x > this.width + 9 || y > this.height + 9) return;
      this.mark(context, this.looks(i), x, y, radius);
    });
    context.strokeStyle = text;
    context.lineWidth = 2;
    for (const [i, more] of [[this.chosen, 4], [this.looked, 6]]) {
      if (i < 0) continue;
      this.mark(context, this.looks(i), ...this.places[i], radius + 1);
      context.beginPath();
      context.arc(...this.places[i], radius + more, 0, 2 * Math.PI);
      context.stroke();
    }
    context.lineWidth = 1;
    this.#drawTip();
  }

  #drawTip() {
    const i = this.looked >= 0 ? this.looked : this.chosen;
    const at = i >= 0 ? this.places[i] : [-1, -1];
    const there = at[0] >= 0 && at[1] >= 0 && at[0] <= this.width && at[1] <= this.height;
    this.tip.hidden = !there;
    if (!there) return;
    this.tip.textContent = this.nameOf(i);
    const { offsetWidth, offsetHeight } = this.tip;
    // To the left where the buttons are.
    const isRight = at[0] + 12 + offsetWidth > this.width - BUTTONS;
    const x = Math.max(2, isRight ? at[0] - 12 - offsetWidth : at[0] + 12);
    const y = at[1] > offsetHeight + 14 ? at[1] - offsetHeight - 10 : at[1] + 14;
    this.tip.style.transform = `translate(${x}px, ${y}px)`;
  }

  #hit([x, y], reach) {
    let best = -1;
    let least = reach ** 2;
    this.places?.forEach(([px, py], i) => {
      const distance = (px - x) ** 2 + (py - y) ** 2;
      if (distance <= least) [best, least] = [i, distance];
    });
    return best;
  }

  #of(event) {
    const box = this.canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  #down(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, this.#of(event));
    this.moved = this.pointers.size > 1;
    this.begun = this.#of(event);
  }

  #move(event) {
    const now = this.#of(event);
    const before = this.pointers.get(event.pointerId);
    if (!before) {
      this.look(this.#hit(now, REACH.mouse));
      return;
    }
    if (Math.hypot(now[0] - this.begun[0], now[1] - this.begun[1]) > 4) this.moved = true;
    if (!this.moved) return;
    const [other] = [...this.pointers].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
    this.pointers.set(event.pointerId, now);
    if (!other) {
      this.#pan(now[0] - before[0], now[1] - before[1]);
      return;
    }
    const apart = (at) => Math.max(1, Math.hypot(at[0] - other[0], at[1] - other[1]));
    this.#pan((now[0] - before[0]) / 2, (now[1] - before[1]) / 2);
    this.zoom(apart(now) / apart(before), [(now[0] + other[0]) / 2, (now[1] + other[1]) / 2]);
  }

  #up(event) {
    this.pointers.delete(event.pointerId);
    if (this.moved || event.type === "pointercancel") return;
    const i = this.#hit(this.#of(event), REACH[event.pointerType] ?? REACH.mouse);
    if (i >= 0) this.onChoose(i);
  }

  #pan(dx, dy) {
    const scale = this.#scale;
    this.centre = [this.centre[0] - dx / scale, this.centre[1] + dy / scale];
    this.draw();
  }

  #wheel(event) {
    // The wheel scrolls the page until the map is clicked.
    if (document.activeElement !== this.canvas && !event.ctrlKey) return;
    event.preventDefault();
    this.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), this.#of(event));
  }

  #focus() {
    if (this.canvas.matches(":focus-visible") && this.points.length) {
      this.look(this.chosen >= 0 ? this.chosen : this.#hit([this.width / 2, this.height / 2], Infinity));
    }
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !this.points.length) return;
    const move = MOVES[event.key];
    if (move && event.shiftKey) this.#pan(-60 * move[0], -60 * move[1]);
    else if (move) this.#step(move);
    else if (event.key === "Enter" || event.key === " ") {
      if (this.looked >= 0) this.onChoose(this.looked);
    } else if (event.key === "+" || event.key === "=") this.zoom(1.5);
    else if (event.key === "-") this.zoom(1 / 1.5);
    else if (event.key === "0") this.fit();
    else if (event.key === "Escape") this.look(-1);
    else return;
    event.preventDefault();
  }

  /** Go to the next point in a direction: near, and not far to the side. */
  #step([dx, dy]) {
    const from = this.looked >= 0 ? this.looked : Math.max(0, this.chosen);
    const [x, y] = this.#at(this.points[from]);
    let best = -1;
    let least = Infinity;
    this.points.forEach((point, i) => {
      const [px, py] = this.#at(point);
      const along = (px - x) * dx + (py - y) * dy;
      const aside = Math.abs((px - x) * dy) + Math.abs((py - y) * dx);
      const cost = along + 2 * aside;
      // Points at the same place come in the order of their numbers.
      const isAhead = along > 1e-6 || (i > from && along > -1e-6 && aside < 1e-6 && dx + dy > 0);
      if (i !== from && isAhead && cost < least) [best, least] = [i, cost];
    });
    if (best < 0) return;
    this.look(best);
    const [px, py] = this.#at(this.points[best]);
    if (px < EDGE || px > this.width - EDGE) this.#pan(this.width / 2 - px, 0);
    if (py < EDGE || py > this.height - EDGE) this.#pan(0, this.height / 2 - py);
  }
}
