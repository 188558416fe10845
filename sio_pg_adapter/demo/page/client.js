// A socket.io client with its connection, its count and its timeline.

import {Tally} from "./tally.js";

const otherNode = (node) => (node === "A" ? "B" : "A");

export class Client {
  tally = new Tally();
  node = null;          // the node of the connection
  live = false;         // whether the client is connected, and has all that it missed
  breaks = 0;           // absences that have ended
  recovered = 0;        // those of them with the same session and a complete replay
  spoil = null;         // "swallow" or "repeat": what happens to the next event before it is counted
  #target;              // the node to connect to next
  #visit = 0;           // count of connections. A node's welcome carries the number of the connection
  #away = null;         // from a drop to the first live event: {why, sid, since}, and `state` after a reload
  #why = null;          // the reason for the next drop
  #urls;
  #timeline;
  #report;
  #sid = null;

  /** `report(client, text, good)` is called at the end of an absence, and when the client is refused. */
  constructor(name, node, urls, timeline, report) {
    this.name = name;
    this.#target = node;
    this.#urls = urls;
    this.#timeline = timeline;
    this.#report = report;
    this.#open();
  }

  /** Connect. With `since` the client gets the events after that position first. */
  #open(since) {
    this.socket = io(this.#urls[this.#target], {
      forceNew: true,  // a connection for each client
      auth: (send) => send({visit: ++this.#visit, since}),
      reconnectionDelay: 900, reconnectionDelayMax: 1200, randomizationFactor: 0.3,  // long enough to miss events
    });
    this.socket.on("welcome", (data) => this.#welcomed(data));
    this.socket.on("tick", (data) => this.#tick(data.n));
    this.socket.on("disconnect", (reason) => this.#dropped(reason));
    this.socket.on("connect_error", (error) => {
      if (!this.socket.active) this.#report(this, `refused: ${error.message}`, false);
    });
    this.socket.io.on("error", () => this.#aim(otherNode(this.#target)));  // as a load balancer would
  }

  get other() {
    return otherNode(this.node ?? this.#target);
  }

  /** The session id, also while the client is away. */
  get sid() {
    if (this.socket.id !== undefined) this.#sid = this.socket.id;
    return this.#sid;
  }

  /** Cut the connection without a message of Socket.IO. */
  cut(why = "cut") {
    this.#why = why;
    this.socket.io.engine.close();
  }

  /** Cut the connection, and connect to the other node next. */
  hop() {
    this.#aim(this.other);
    this.cut("moved");
  }

  /** Close the connection as a reload of the page does, without a message of Socket.IO. */
  leave() {
    this.live = false;
    this.socket.off();
    this.socket.io.off();
    this.socket.io.reconnection(false);
    this.socket.io.engine.close();
    this.#away = {why: "page reloaded", sid: this.sid, since: performance.now()};
  }

  /** Begin a new session with the state of a page: all events up to `n`, and the position of its snapshot. */
  enter({n, position}) {
    for (let loaded = this.tally.highest + 1; loaded <= n; loaded++) this.#timeline.note(loaded, {kind: "loaded"});
    this.#timeline.note(n + 1, {mark: "page reloaded"});
    this.tally.loaded(n);
    this.#away.state = n;
    this.#open(position);
  }

  /** Set the reason to report for the next drop. */
  expect(why) {
    this.#why = why;
  }

  /** Stop reconnecting, because the demo has ended. */
  end() {
    this.socket.off("disconnect");
    this.socket.disconnect();
    this.live = false;
  }

  #aim(node) {
    this.#target = node;
    this.socket.io.uri = this.#urls[node];
  }

  #welcomed({node, visit}) {
    if (visit !== this.#visit) return;  // to an earlier connection, and replayed
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
    for (let lost = n - skipped; lost < n; lost++) this.#timeline.note(lost, {kind: "lost"});
    if (skipped > 0) this.#timeline.note(n - skipped, {mark: `${skipped} lost`});
    this.#timeline.note(n, {kind, node: this.#target, ...(kind === "doubled" && {mark: "doubled"})});
    if (absence === null) return;
    this.live = true;
    if (this.#away !== null) this.#returned(absence);
  }

  #dropped(reason) {
    this.live = false;
    this.tally.dropped();
    const why = this.#why ?? `connection lost (${reason})`;
    this.#why = null;
    if (this.tally.highest === null) return;  // no session to return to
    this.#timeline.note(this.tally.highest + 1, {mark: why});
    if (this.#away === null) this.#away = {why, sid: this.sid, since: performance.now()};
    else this.#away.why += `, ${why}`;
  }

  #returned({missed, replayed}) {
    const {why, sid, since, state} = this.#away;
    this.#away = null;
    const same = this.socket.id === sid, seconds = ((performance.now() - since) / 1000).toFixed(1);
    const words = `${why}; back on node ${this.node} with ${same ? "the same" : "a new"} sid after ${seconds} s; `;
    const counts = `${missed} missed, ${replayed} replayed`;
    if (state !== undefined) {  // a new session is right here, and the page has what was before
      const good = missed === replayed ? undefined : false;
      this.#report(this, `${words}loaded up to event ${state}, then ${counts}`, good);
      return;
    }
    const good = same && this.socket.recovered && missed === replayed;
    this.breaks++;
    if (good) this.recovered++;
    this.#report(this, words + counts, good);
  }
}
