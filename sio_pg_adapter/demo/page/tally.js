// The count, free of sockets and of the page. walk.py counts in the same way; a test compares both.

/** Counts numbered packets, which must come in order, each once.
 *
 * A node sends its welcome after the replay. So what comes before the welcome is the replay, and the number of
 * the first packet after it tells how many were missed.
 */
export class Tally {
  highest = null;                 // number of the newest packet that came
  #away = {since: null, replayed: 0};  // from a drop to the first live packet: the highest number before, what came
  #welcome = false;

  constructor() {
    this.reset();
  }

  /** Begin to count at 0. What came stays known: a loss after it is a loss. */
  reset() {
    this.received = this.missed = this.replayed = this.lost = this.doubled = 0;
  }

  /** The connection is gone. */
  dropped() {
    if ((this.#away?.since ?? null) === null) this.#away = {since: this.highest, replayed: 0};
    this.#welcome = false;
  }

  /** The welcome to this connection came. */
  welcomed() {
    this.#welcome = true;
  }

  /** Packet `n` came. Returns what it is ("live", "replayed", "doubled"), how many were skipped just before it, and,
   * if it ends an absence, what was missed and replayed in that. */
  tick(n) {
    this.received++;
    if (this.highest !== null && n <= this.highest) {
      this.doubled++;
      return {kind: "doubled", skipped: 0, absence: null};
    }
    const skipped = this.highest === null ? 0 : n - this.highest - 1;
    this.lost += skipped;
    this.highest = n;
    const away = this.#away;
    if (away === null) return {kind: "live", skipped, absence: null};
    const first = away.since === null;  // the first connection: it missed nothing
    if (!this.#welcome) {
      if (first) return {kind: "live", skipped, absence: null};
      away.replayed++;
      this.replayed++;
      return {kind: "replayed", skipped, absence: null};
    }
    this.#away = null;
    const missed = first ? 0 : n - 1 - away.since;
    this.missed += missed;
    return {kind: "live", skipped, absence: {missed, replayed: away.replayed}};
  }
}
