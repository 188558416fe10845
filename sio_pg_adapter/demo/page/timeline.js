// One client's packets from old to new, a cell each. What a cell means is told by its form, not by colour alone.

const KEPT = 300;  // cells; a wide screen shows some 200

export class Timeline {
  #element;
  #name;
  #slots = new Map();    // number -> {kind, node, mark}
  #cells = new Map();    // number -> its element
  #changed = new Set();  // numbers to paint
  #last = null;          // number of the newest cell

  constructor(element, name) {
    this.#element = element;
    this.#name = name;
  }

  /** Note something about packet `n`: what became of it, the node that sent it, a mark above it. */
  note(n, what) {
    const slot = this.#slots.get(n) ?? {kind: "due", node: "", mark: ""};
    const marks = [slot.mark, what.mark].filter(Boolean);
    this.#slots.set(n, {...slot, ...what, mark: [...new Set(marks)].join(", ")});
    this.#changed.add(n);
    this.#slots.delete(n - 2 * KEPT);
  }

  /** Show all that is known, up to packet `head`. */
  draw(head) {
    if (this.#last === null) {
      if (this.#slots.size === 0) return;
      this.#last = Math.min(...this.#slots.keys()) - 1;
    }
    this.#last = Math.max(this.#last, head - KEPT);  // it was paused for long
    while (this.#last < head) {
      const cell = document.createElement("i");
      this.#cells.set(++this.#last, cell);
      this.#element.append(cell);
      this.#changed.add(this.#last);
    }
    for (const n of [...this.#changed].sort((a, b) => a - b)) {
      if (n > head) continue;  // a mark on what is not sent yet
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
    const cell = this.#cells.get(n), slot = this.#slots.get(n) ?? {kind: "due", node: "", mark: ""};
    if (cell === undefined) return;
    cell.className = `cell ${slot.kind}`;
    cell.dataset.node = slot.node;
    if (slot.mark) cell.dataset.mark = slot.mark;
    const turns = slot.node !== "" && this.#slots.get(n - 1)?.node !== slot.node;
    cell.textContent = turns ? slot.node : "";
  }

  /** Say in words what the cells show. */
  describe() {
    const seen = {live: 0, replayed: 0, due: 0, lost: 0, doubled: 0};
    for (const n of this.#cells.keys()) seen[this.#slots.get(n)?.kind ?? "due"]++;
    const label = `The latest ${this.#cells.size} packets of ${this.#name}: ${seen.live} received live, ` +
      `${seen.replayed} replayed, ${seen.due} not here yet, ${seen.lost} lost, ${seen.doubled} doubled`;
    this.#element.setAttribute("aria-label", label);
  }
}
