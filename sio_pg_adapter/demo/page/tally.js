// The count, without sockets and without the page. walk.py counts in the same way, and a test compares the two.

/** A count of numbered events, which must arrive in order and once.
 *
 * A node sends its welcome after the replay. So the events before the welcome are the replay, and the number of the
 * first event after it shows how many were missed.
 */
export class Tally {
  highest = null;                      // number of the newest event received
  #away = {since: null, replayed: 0};  // from a drop to the first live event: the highest number before, and a count
  #welcome = false;

  constructor() {
    this.reset();
  }

  /** Set the counters to 0. The newest event stays known, so a later loss still counts. */
  reset() {
    this.received = this.missed = this.replayed = this.lost = this.doubled = 0;
  }

  /** Record that the connection is lost. */
  dropped() {
    if ((this.#away?.since ?? null) === null) this.#away = {since: this.highest, replayed: 0};
    this.#welcome = false;
  }

  /** Record that the page was loaded with all events up to `n`. It takes the place of an absence that has not ended. */
  loaded(n) {
    this.highest = n;
    this.#away = {since: n, replayed: 0};
    this.#welcome = false;
  }

  /** Record the welcome to this connection. */
  welcomed() {
    this.#welcome = true;
  }

  /** Record event `n`.
   *
   * Return its kind ("live", "replayed" or "doubled"), the number of events skipped just before it, and, if it ends
   * an absence, how many events that absence missed and how many were replayed.
   */
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
    const first = away.since === null;  // the first connection has missed nothing
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
