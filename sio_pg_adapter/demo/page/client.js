// One socket.io client: its connection, its count and its timeline.

import {Tally} from "./tally.js";

const other = (node) => (node === "A" ? "B" : "A");

export class Client {
  tally = new Tally();
  node = null;          // the node that it is on
  live = false;         // served, and nothing is due to it from before
  breaks = 0;           // absences that have ended
  recovered = 0;        // of them: with the same session, and all that was missed replayed
  spoil = null;         // "swallow" or "repeat": what to do to the next packet before it is counted
  #target;              // the node that it connects to next
  #visit = 0;           // its count of connections: a node's welcome says to which it is
  #away = null;         // from a drop to the first live packet: {why, sid, since}
  #why = null;          // of the next drop
  #urls;
  #timeline;
  #told;

  /** `told(client, text, good)` is called when an absence ends, or something is wrong. */
  constructor(name, node, urls, timeline, told) {
    this.name = name;
    this.#target = node;
    this.#urls = urls;
    this.#timeline = timeline;
    this.#told = told;
    this.socket = io(urls[node], {
      forceNew: true,  // a connection of its own
      auth: (send) => send({visit: ++this.#visit}),
      reconnectionDelay: 900, reconnectionDelayMax: 1200, randomizationFactor: 0.3,  // long enough to miss something
    });
    this.socket.on("welcome", (data) => this.#welcomed(data));
    this.socket.on("tick", (data) => this.#tick(data.n));
    this.socket.on("disconnect", (reason) => this.#dropped(reason));
    this.socket.on("connect_error", (error) => {
      if (!this.socket.active) told(this, `refused: ${error.message}`, false);
    });
    this.socket.io.on("error", () => this.#aim(other(this.#target)));  // as a load balancer would
  }

  get other() {
    return other(this.node ?? this.#target);
  }

  /** Cut the connection, with no word of Socket.IO. */
  cut(why = "cut") {
    this.#why = why;
    this.socket.io.engine.close();
  }

  /** Cut, and connect to the other node next. */
  hop() {
    this.#aim(this.other);
    this.cut("moved");
  }

  /** What the next drop will be called. */
  expect(why) {
    this.#why = why;
  }

  #aim(node) {
    this.#target = node;
    this.socket.io.uri = this.#urls[node];
  }

  #welcomed({node, visit}) {
    if (visit !== this.#visit) return;  // to a former connection: missed and replayed
    this.node = node;
    this.tally.welcomed();
  }

  #tick(n) {
    const spoil = this.spoil;
    this.spoil = null;
    if (spoil === "swallow") return;
    this.#count(n);
    if (spoil === "repeat") this.#count(n);
  }

  #count(n) {
    const {kind, skipped, absence} = this.tally.tick(n);
    for (let lost = n - skipped; lost < n; lost++) this.#timeline.note(lost, {kind: "lost", mark: "×"});
    this.#timeline.note(n, {kind, node: this.#target, ...(kind === "doubled" && {mark: "2×"})});
    if (absence === null) return;
    this.live = true;
    if (this.#away !== null) this.#returned(absence);
  }

  #dropped(reason) {
    this.live = false;
    this.tally.dropped();
    const why = this.#why ?? `connection lost (${reason})`;
    this.#why = null;
    if (this.tally.highest === null) return;  // there is nothing to come back to
    this.#timeline.note(this.tally.highest + 1, {mark: why});
    if (this.#away === null) this.#away = {why, sid: this.sid, since: performance.now()};
    else this.#away.why += `, ${why}`;
  }

  #returned({missed, replayed}) {
    const {why, sid, since} = this.#away;
    this.#away = null;
    const same = this.socket.id === sid, good = same && this.socket.recovered && missed === replayed;
    const seconds = ((performance.now() - since) / 1000).toFixed(1);
    this.breaks++;
    if (good) this.recovered++;
    this.#told(this, `${why}; back on node ${this.node} with ${same ? "the same" : "a new"} sid after ${seconds} s; ` +
      `${missed} missed, ${replayed} replayed`, good);
  }

  /** Its session id, also while it is away. */
  get sid() {
    if (this.socket.id !== undefined) this.#sid = this.socket.id;
    return this.#sid;
  }
  #sid = null;
}
