// Many socket.io-client sockets in one process: commands as JSON lines on stdin, what happens to
// the sockets as JSON lines on stdout. The Python side is ../js_driver.py; the commands are the keys
// of `commands` below, each answered by a line {type: "reply", rid, value | error}.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { Tally, compare } from "./tally.mjs";

const require = createRequire(import.meta.url);
const clients = new Map();

const pack = (value) => {
  if (Buffer.isBuffer(value)) return { $bin: value.toString("base64") };
  if (value instanceof ArrayBuffer || ArrayBuffer.isView(value)) return pack(Buffer.from(value));
  if (Array.isArray(value)) return value.map(pack);
  if (typeof value === "function") return { $ack: true };
  if (value === undefined) return { $undefined: true };
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, pack(v)]));
};
const unpack = (value) => {
  if (Array.isArray(value)) return value.map(unpack);
  if (value === null || typeof value !== "object") return value;
  if (typeof value.$bin === "string") return Buffer.from(value.$bin, "base64");
  return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, unpack(v)]));
};
const say = (message) => process.stdout.write(JSON.stringify(message) + "\n");
const state = ({ socket }) => ({
  sid: socket.id ?? null, pid: socket._pid ?? null, offset: socket._lastOffset ?? null,
  recovered: Boolean(socket.recovered), connected: socket.connected,
  transport: socket.io.engine?.transport?.name ?? null, url: socket.io.uri,
});

function reply(client, name, args, ack) {
  const how = client.acks[name] ?? client.acks["*"] ?? "echo";
  if (how === "echo") ack(...args);
  else if (how !== "none") ack(...unpack(how)); // "none": the event stays unanswered
}

function watch(id, client) {
  const { socket } = client;
  const tell = (type, more) => say({ type, id, ...more });
  // emitEvent, not onAny: only after it has run is _lastOffset what a reconnect would send
  const emitEvent = socket.emitEvent;
  socket.emitEvent = function (packet) {
    const [name, ...args] = packet;
    emitEvent.call(this, packet);
    if (client.counting && name === "n") return client.tally.add(args);
    const ack = typeof args.at(-1) === "function" ? args.pop() : null;
    if (name !== "n") client.tally.mark(name);
    tell("event", { name, args: pack(args), ack: ack !== null, offset: socket._lastOffset ?? null });
    if (ack) reply(client, name, args, ack);
  };
  socket.on("connect", () => tell("connect", state(client)));
  socket.on("disconnect", (reason) => tell("disconnect", { reason }));
  socket.on("connect_error", (e) =>
    tell("connect_error", { message: e.message, data: pack(e.data ?? null), final: !socket.active }));
  if (client.shared) return;
  socket.io.on("open", () =>
    socket.io.engine.on("upgrade", (transport) => tell("upgrade", { transport: transport.name })));
}

// Leaves the present connection as it is, deaf and mute, and has the manager open another one.
function abandon(client) {
  const { io } = client.socket;
  const engine = io.engine;
  engine.clearTimeoutFn?.(engine.pingTimeoutTimer ?? engine._pingTimeoutTimer);
  engine.off();
  engine.close = () => engine;
  const { transport } = engine;
  if (transport.name === "websocket") transport.ws._socket.pause();
  else {
    transport.doPoll = transport.poll = () => {};
    transport.pollXhr?.abort?.();
  }
  client.abandoned.push(engine);
  return engine;
}
const cuts = {
  drop: ({ socket }) => void socket.io.engine.close(),
  abort(client) {
    const { transport } = client.socket.io.engine;
    if (transport.name === "websocket") transport.ws._socket.destroy();
    else cuts.silence(client); // polling holds no connection that could be reset
  },
  silence(client) {
    // While it opens one, this would leave its manager reconnecting for ever: seen with a server of Node's, too.
    if (client.socket.io._readyState !== "open") throw new Error("it has no connection to fall silent");
    abandon(client);
    client.socket.io.onclose("transport close");
  },
};

function random(seed) { // mulberry32: a run that failed can be had again
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

const connected = (socket, timeout) => new Promise((resolve) => {
  if (socket.connected) return resolve("connected");
  const done = (outcome) => {
    clearTimeout(timer);
    socket.off("connect", onConnect).off("connect_error", onError);
    resolve(outcome);
  };
  const onConnect = () => done("connected");
  const onError = (e) => socket.active || done(`refused: ${e.message}`); // else it tries again
  const timer = setTimeout(() => done("timeout"), timeout);
  socket.on("connect", onConnect).on("connect_error", onError);
});

// Cuts the client again and again: some ms after it is back, with a `witness` every second time some ms after
// it was abreast of `witness` again, so that cuts fall into replays, live delivery and the seam between them.
async function churn(id, client, options) {
  const { drops, delay_ms = [30], stay_ms = [0, 60], how = "drop", hop, again_ms, witness, seed = 1,
    timeout_ms = 20000 } = options;
  const { socket } = client, { io } = socket, next = random(seed), outcomes = [];
  let live = 0;
  for (let i = 0; i < drops; i++) {
    if (witness && i % 2 === 0 && await client.tally.abreast(clients.get(witness).tally, timeout_ms)) live++;
    await sleep(stay_ms[0] + next() * (stay_ms[1] - stay_ms[0]));
    const back = await connected(socket, timeout_ms); // the server may have cut it meanwhile
    if (back !== "connected") { outcomes.push({ i, outcome: back }); break; }
    const delay = delay_ms[i % delay_ms.length], sid = socket.id, from = Date.now();
    io.reconnectionDelay(delay);
    io.reconnectionDelayMax(delay);
    if (hop) io.uri = hop[i % hop.length];
    let attempts = 0, interrupted = false;
    const count = () => { attempts++; };
    io.on("reconnect_attempt", count);
    const gone = new Promise((resolve) => socket.once("disconnect", resolve));
    cuts[how](client);
    await gone;
    if (again_ms) { // a second cut, while the server decides about the CONNECT
      const pause = again_ms[0] + next() * (again_ms[1] - again_ms[0]);
      io.once("open", () => setTimeout(() => {
        if ((interrupted = !socket.connected && io.engine.readyState === "open")) cuts.drop(client);
      }, pause));
    }
    const outcome = await connected(socket, timeout_ms);
    io.off("reconnect_attempt", count);
    outcomes.push({ i, delay, outcome, attempts, interrupted, recovered: Boolean(socket.recovered),
      same_sid: socket.id === sid, ms: Date.now() - from, url: io.uri });
    if (outcome !== "connected") break;
  }
  const bad = outcomes.filter((o) => o.outcome !== "connected" || !o.recovered || !o.same_sid);
  say({ type: "churned", id, recovered: outcomes.length - bad.length, bad, live,
    interrupted: outcomes.filter((o) => o.interrupted).length, outcomes });
}

const commands = {
  create(c, { id, url, version = "4-8", namespace = "/", on, auth, auth_function, parser, acks = {}, count, options }) {
    const extra = auth_function === undefined ? { auth } : { auth: (done) => done(auth_function) };
    let socket;
    if (on) socket = clients.get(on).socket.io.socket(namespace, extra);
    else {
      if (parser === "msgpack") extra.parser = require("socket.io-msgpack-parser");
      socket = require(`sio-${version}`).io(url + namespace, {
        forceNew: true, autoConnect: false, transports: ["websocket"], reconnectionDelay: 20,
        reconnectionDelayMax: 500, randomizationFactor: 0, ...extra, ...options,
      });
    }
    const client = { socket, acks, counting: count, tally: new Tally(), abandoned: [], shared: Boolean(on) };
    clients.set(id, client);
    watch(id, client);
  },
  connect: (c) => void c.socket.connect(),
  // the connection alone: no namespace is joined over it
  open: (c, { id }) => new Promise((resolve, reject) => {
    c.socket.io.once("close", (reason) => say({ type: "close", id, reason }));
    c.socket.io.open((error) => (error ? reject(error) : resolve()));
  }),
  // its machine is busy: it reads nothing more from its websocket, and answers no ping
  stall: (c) => void c.socket.io.engine.transport.ws._socket.pause(),
  flow: (c) => void c.socket.io.engine.transport.ws._socket.resume(),
  disconnect: (c) => void c.socket.disconnect(),
  drop: (c) => cuts.drop(c),
  abort: (c) => cuts.abort(c),
  silence: (c) => cuts.silence(c),
  // the next reconnect opens that address
  "set-url": (c, { url }) => { c.socket.io.uri = url; },
  "set-auth": (c, { auth }) => { c.socket.auth = auth; },
  "set-delay": ({ socket: { io } }, { ms }) => {
    io.reconnectionDelay(ms);
    io.reconnectionDelayMax(ms);
  },
  reconnection: (c, { on }) => { c.socket.io.reconnection(on); c.socket.io.skipReconnect = !on; },
  emit: (c, { event, args = [], ack, timeout_ms = 15000 }) => {
    if (!ack) return void c.socket.emit(event, ...unpack(args));
    return new Promise((resolve, reject) => c.socket.timeout(timeout_ms).emit(event, ...unpack(args),
      (error, ...values) => (error ? reject(error) : resolve(pack(values)))));
  },
  // with the client's `retries` it waits in its queue until the server has acknowledged it
  send: (c, { event, args = [] }) => new Promise((resolve, reject) => {
    c.socket.emit(event, ...unpack(args), (error, ...values) => (error ? reject(error) : resolve(pack(values))));
  }),
  "get-state": (c) => ({ ...state(c), count: c.tally.count }),
  stats: (c, { expected }) => c.tally.stats(expected),
  compare: (c, { other }) => compare(c.tally, clients.get(other).tally),
  churn: (c, options) => { churn(options.id, c, options); },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { cmd, rid, ...options } = JSON.parse(line);
  Promise.resolve()
    .then(() => commands[cmd](clients.get(options.id), options))
    .then((value) => say({ type: "reply", rid, value: value ?? null }))
    .catch((e) => say({ type: "reply", rid, error: e.stack ?? String(e) }));
}
process.exit(0);
