// The events of one client from old to new, with a cell for each. The form of a cell shows its meaning, not only its
// color.

const KEPT = 300;  // cells. A wide screen shows about 200
const LANES = 2;   // rows of labels above the cells
const GAP = 6;     // pixels between two labels of a lane

const EMPTY = {kind: "due", node: "", mark: ""};

export class Timeline {
  #element;
  #name;
  #slots = new Map();      // number -> {kind, node, mark}
  #cells = new Map();      // number -> its element
  #changed = new Set();    // numbers to paint
  #newest = null;          // number of the newest cell
  #lanes = Array(LANES);   // the last label of each lane

  constructor(element, name) {
    this.#element = element;
    this.#name = name;
  }

  /** Record facts about event `n`: its kind, the node that sent it, or a label above it. */
  note(n, facts) {
    const slot = this.#slots.get(n) ?? EMPTY;
    const marks = [slot.mark, facts.mark].filter(Boolean);
    this.#slots.set(n, {...slot, ...facts, mark: [...new Set(marks)].join(", ")});
    this.#changed.add(n);
    this.#slots.delete(n - 2 * KEPT);
  }

  /** Show the events up to number `head`. */
  draw(head) {
    if (this.#newest === null) {
      if (this.#slots.size === 0) return;
      this.#newest = Math.min(...this.#slots.keys()) - 1;
    }
    this.#newest = Math.max(this.#newest, head - KEPT);  // after a long pause
    while (this.#newest < head) {
      const cell = document.createElement("i");
      this.#cells.set(++this.#newest, cell);
      this.#element.append(cell);
      this.#changed.add(this.#newest);
    }
    for (const n of [...this.#changed].sort((a, b) => a - b)) {
      if (n > head) continue;  // a label on an event that is not sent yet
      this.#changed.delete(n);
      this.#paint(n);
    }
    for (const n of this.#cells.keys()) {
      if (this.#cells.size <= KEPT) break;
      this.#cells.get(n).remove();
      this.#cells.delete(n);
      this.#changed.delete(n);
    }
  }

  #paint(n) {
    const cell = this.#cells.get(n), slot = this.#slots.get(n) ?? EMPTY;
    if (cell === undefined) return;
    cell.className = `cell ${slot.kind}`;
    cell.dataset.node = slot.node;
    cell.dataset.letter = this.#slots.get(n - 1)?.node === slot.node ? "" : slot.node;
    if (slot.mark !== (cell.dataset.mark ?? "")) this.#label(cell, slot.mark);
  }

  // Put a label above a cell. It goes into the lane whose last label ends first. If the two still touch, the older
  // one is shortened.
  #label(cell, mark) {
    const labelled = cell.dataset.mark !== undefined;
    cell.dataset.mark = mark;
    if (labelled) {
      cell.firstChild.textContent = mark;
      return;
    }
    const label = document.createElement("span");
    label.className = "mark";
    label.textContent = mark;
    cell.append(label);
    const left = label.getBoundingClientRect().left;
    const ends = Array.from(this.#lanes, (last) => last?.isConnected ? last.getBoundingClientRect().right : -Infinity);
    const free = ends.findIndex((end) => end + GAP <= left);
    const lane = free >= 0 ? free : ends.indexOf(Math.min(...ends));
    if (free < 0) {
      const last = this.#lanes[lane];
      last.style.setProperty("max-width", `${Math.max(0, left - GAP - last.getBoundingClientRect().left)}px`);
    }
    label.dataset.lane = lane;
    this.#lanes[lane] = label;
  }

  /** Describe the cells in words, for screen readers. */
  describe() {
    const counts = {live: 0, replayed: 0, loaded: 0, due: 0, lost: 0, doubled: 0};
    for (const n of this.#cells.keys()) counts[this.#slots.get(n)?.kind ?? "due"]++;
    const label = `The latest ${this.#cells.size} events of ${this.#name}: ${counts.live} received live, ` +
      `${counts.replayed} replayed, ${counts.loaded} loaded, ${counts.due} not here yet, ` +
      `${counts.lost} lost, ${counts.doubled} doubled`;
    this.#element.setAttribute("aria-label", label);
  }
}
