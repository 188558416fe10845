// The load: many socket.io-client sockets in one process, the same for all servers. Commands are JSON lines on
// stdin, the keys of `commands`, one at a time; each is answered by a line. Times are of the monotonic clock that
// the servers use too, in ns.
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { io } from "socket.io-client";

const groups = new Map();
const paces = new Map();
const now = () => Number(process.hrtime.bigint());
const BATCH = 100; // that many connect side by side

class Group {
  sockets = [];
  count = 0;
  last = 0;
  drops = 0;
  times = null; // of each event's arrival, where that is asked for
  onEvent = null;

  event(data) {
    this.last = now();
    if (this.times && this.count < this.times.length) this.times[this.count] = this.last;
    this.count++;
    this.onEvent?.(data);
  }
}

function open(group, url, auth, engine) {
  const socket = io(url, {
    forceNew: true, autoConnect: false, transports: ["websocket"], reconnectionDelay: 10, reconnectionDelayMax: 500,
    randomizationFactor: 0, timeout: 120_000, auth, ...engine,
  });
  socket.on("n", (data) => group.event(data));
  socket.on("disconnect", () => group.drops++);
  group.sockets.push(socket);
  return socket;
}

const connected = (socket) => new Promise((resolve, reject) => {
  socket.once("connect", resolve);
  socket.once("connect_error", (e) => socket.active || reject(e));
  socket.connect();
});

async function until(condition, timeout_ms) {
  for (const end = Date.now() + timeout_ms; !condition(); await sleep(1)) if (Date.now() > end) return false;
  return true;
}

// As a network that fails: nothing is said to the server.
const cut = (socket) => socket.io.engine.transport.ws._socket.destroy();

const commands = {
  async connect({ group: name, urls, count, auth = {}, options = {} }) {
    const group = groups.get(name) ?? new Group();
    groups.set(name, group);
    for (let i = 0; i < count; i += BATCH) {
      const some = Array.from({ length: Math.min(BATCH, count - i) }, (_, j) =>
        open(group, urls[(i + j) % urls.length], auth, options));
      await Promise.all(some.map(connected));
    }
  },

  // Forget what has arrived so far; keep the time of each event where `times` of them are expected.
  watch({ group: name, times = 0 }) {
    const group = groups.get(name);
    Object.assign(group, { count: 0, last: 0, drops: 0, times: times ? new Float64Array(times) : null });
  },
  // Wait for `count` events. `after`: how many came later than that moment.
  async arrived({ group: name, count, timeout_ms = 120_000, after = Infinity }) {
    const group = groups.get(name);
    await until(() => group.count >= count, timeout_ms);
    const late = group.times ? group.times.subarray(0, group.count).filter((t) => t > after).length : null;
    return { count: group.count, last: group.last, late, drops: group.drops };
  },

  // ms from an event sent to the server of `from` until what that broadcasts has come to `to`, one at a time.
  async latency({ from, to, count, warmup, pause_ms = 1, size = 200 }) {
    const sender = groups.get(from).sockets[0], receiver = groups.get(to), found = [];
    const pad = "x".repeat(size - JSON.stringify(["n", { i: 1000, pad: "" }]).length);
    for (let i = 0; i < warmup + count; i++) {
      const begun = now();
      const ended = new Promise((resolve, reject) => {
        const timer = setTimeout(() => reject(new Error("an event did not arrive")), 10_000);
        receiver.onEvent = (data) => { if (data.i === i) { clearTimeout(timer); resolve(now()); } };
      });
      sender.emit("relay", { i, pad });
      const ms = (await ended - begun) / 1e6;
      if (i >= warmup) found.push(ms);
      await sleep(pause_ms);
    }
    receiver.onEvent = null;
    return found;
  },

  // Begin to have the server broadcast to a room every so many ms, by `from`. `to` is a client in the room.
  pace({ room, from, to, every_ms, size = 200 }) {
    const sender = groups.get(from).sockets[0], receiver = groups.get(to);
    const pace = { sent: [], found: [], heard: Boolean(receiver) };
    const pad = "x".repeat(size - JSON.stringify(["n", { i: 1000, pad: "", room }]).length);
    const send = () => {
      sender.emit("relay", { i: pace.sent.length, pad, room });
      pace.sent.push(now());
    };
    if (receiver) receiver.onEvent = (data) => pace.found.push((now() - pace.sent[data.i]) / 1e6);
    pace.timer = setInterval(send, every_ms);
    paces.set(room, pace);
  },
  // End it. How many were sent, and the ms of each until `to` had it.
  async paced({ room }) {
    const { sent, found, timer, heard } = paces.get(room);
    clearInterval(timer);
    if (heard) await until(() => found.length >= sent.length, 10_000);
    return { sent: sent.length, found };
  },

  // Cut all of the group; they stay away.
  async cut({ group: name }) {
    const group = groups.get(name);
    for (const socket of group.sockets) { socket.io.reconnection(false); cut(socket); }
    await until(() => group.sockets.every((s) => !s.connected), 10_000);
  },
  // Bring one of them back: ms from its CONNECT packet to the last of so many missed events.
  async recover({ group: name, index, missed, timeout_ms = 60_000 }) {
    const group = groups.get(name), socket = group.sockets[index];
    let begun = 0, got = 0, ended = 0;
    const send = socket._sendConnectPacket;
    socket._sendConnectPacket = function (...args) { begun = now(); return send.apply(this, args); };
    const count = () => { if (++got === missed) ended = now(); };
    socket.on("n", count);
    socket.connect();
    await until(() => ended || (socket.connected && !socket.recovered), timeout_ms);
    await sleep(20); // would more come than were missed?
    socket.off("n", count);
    return { ms: ended ? (ended - begun) / 1e6 : null, recovered: Boolean(socket.recovered), got };
  },

  // Cut all of the group at once: ms until the last is back.
  async storm({ group: name, timeout_ms = 120_000 }) {
    const { sockets } = groups.get(name), times = [];
    let recovered = 0;
    const begun = now();
    for (const socket of sockets) {
      socket.once("connect", () => {
        times.push((now() - begun) / 1e6);
        if (socket.recovered) recovered++;
      });
    }
    for (const socket of sockets) cut(socket);
    await until(() => times.length === sockets.length, timeout_ms);
    return { ms: times.at(-1) ?? null, median_ms: times[times.length >> 1] ?? null, back: times.length, recovered };
  },
};

process.stdout.write(JSON.stringify({ node: process.version }) + "\n");
for await (const line of createInterface({ input: process.stdin })) {
  const { op, ...rest } = JSON.parse(line);
  let answer;
  try { answer = { value: (await commands[op](rest)) ?? null }; } catch (e) { answer = { error: e.stack ?? String(e) }; }
  process.stdout.write(JSON.stringify(answer) + "\n");
}
process.exit(0);
