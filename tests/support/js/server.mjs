// A Socket.IO server of Node's own, with connection state recovery in its memory or without: what the Python
// client must get along with, too. Commands as JSON lines on stdin, each answered by a line on stdout; the
// Python side is ../jsserver.py.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const { Server } = createRequire(import.meta.url)("socket.io");
const { recovery } = JSON.parse(process.argv[2]);
const io = new Server({ connectionStateRecovery: recovery || undefined });
const notes = [];
const waiting = [];
const say = (message) => process.stdout.write(JSON.stringify(message) + "\n");
const unpack = (value) => {
  if (Array.isArray(value)) return value.map(unpack);
  if (value === null || typeof value !== "object") return value;
  if (typeof value.$bin === "string") return Buffer.from(value.$bin, "base64");
  return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, unpack(v)]));
};
const pack = (value) => {
  if (Buffer.isBuffer(value)) return { $bin: value.toString("base64") };
  if (Array.isArray(value)) return value.map(pack);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, pack(v)]));
};

function note(entry) {
  notes.push(entry);
  for (const look of [...waiting]) look();
}

for (const namespace of ["/", "/a", "/b"]) {
  io.of(namespace).on("connection", (socket) => {
    const { pid, offset, ...auth } = socket.handshake.auth;
    note({ hook: "connect", namespace, sid: socket.id, recovered: socket.recovered, auth, presented: offset ?? null });
    socket.on("disconnect", (reason) => note({ hook: "disconnect", namespace, sid: socket.id, reason }));
    socket.on("echo", (...args) => args.pop()(...args));
    socket.on("join", (room, ack) => { socket.join(room); ack("joined"); });
  });
}

const target = ({ namespace = "/", room, volatile }) => {
  let to = io.of(namespace);
  if (room) to = to.to(room);
  return volatile ? to.volatile : to;
};
const commands = {
  emit: ({ event, args = [], ...options }) => void target(options).emit(event, ...unpack(args)),
  // of many clients: the list of their answers
  ask: ({ event, args = [], ...options }) => target(options).timeout(15000).emitWithAck(event, ...unpack(args)),
  cut: () => { for (const socket of io.engine ? Object.values(io.engine.clients) : []) socket.close(true); },
  disconnect: ({ namespace = "/" }) => void io.of(namespace).disconnectSockets(),
  notes: ({ like, count }) => new Promise((resolve) => {
    const look = () => {
      const found = notes.filter((n) => Object.entries(like).every(([k, v]) => n[k] === v));
      if (found.length < count) return;
      if (waiting.includes(look)) waiting.splice(waiting.indexOf(look), 1);
      resolve(found);
    };
    waiting.push(look);
    look();
  }),
};

io.listen(0, { host: "127.0.0.1" });
io.httpServer.on("listening", () => say({ port: io.httpServer.address().port }));
for await (const line of createInterface({ input: process.stdin })) {
  const { cmd, rid, ...options } = JSON.parse(line);
  Promise.resolve()
    .then(() => commands[cmd](options))
    .then((value) => say({ rid, value: pack(value ?? null) }))
    .catch((e) => say({ rid, error: e.stack ?? String(e) }));
}
process.exit(0);
