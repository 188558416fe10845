// One Socket.IO server of Node.js: `node js/server.mjs '{"kind": "memory"}'`, with connection state recovery.
// `kind` is "memory" or "redis-streams" (with `redis`: its URL). The same commands as servers/python_node.py.
import { createServer } from "node:http";
import { createInterface } from "node:readline";
import { setImmediate as turn, setTimeout as sleep } from "node:timers/promises";
import { createAdapter } from "@socket.io/redis-streams-adapter";
import { createClient } from "redis";
import { Server } from "socket.io";

const config = JSON.parse(process.argv[2]);
const options = { connectionStateRecovery: { maxDisconnectionDuration: 120_000 } };
if (config.kind === "redis-streams") {
  const redis = createClient({ url: config.redis });
  await redis.connect();
  options.adapter = createAdapter(redis, { maxLen: 1_000_000 }); // else it trims what is to be recovered
}
const http = createServer();
const io = new Server(http, options);
io.on("connection", (socket) => {
  if (socket.handshake.auth.room) socket.join(socket.handshake.auth.room);
  socket.on("relay", (data) => io.to(data.room ?? "bench").emit("n", data));
});

// emit() returns nothing to wait for: the adapter's promise does, where it writes to a bus
const adapter = io.of("/").adapter;
const broadcast = adapter.broadcast;
let last;
adapter.broadcast = function (...args) { return (last = broadcast.apply(this, args)); };
async function emitted(data, room) {
  last = undefined;
  io.to(room).emit("n", data);
  if (last) await last;
  else await turn(); // in memory: let the event loop turn, so that it is sent
}

const payload = (size, i) => ({ i, pad: "x".repeat(size - JSON.stringify(["n", { i, pad: "" }]).length) });

// How long the event loop keeps a timer of 10 ms waiting, and what it computes meanwhile, as in python_node.py
let stall = { ms: 0, cpu_ms: 0 };
const cpu = () => { const { user, system } = process.threadCpuUsage(); return (user + system) / 1000; };
function sleepOn() {
  const due = performance.now() + 10, before = cpu();
  setTimeout(() => {
    stall = { ms: Math.max(stall.ms, performance.now() - due), cpu_ms: Math.max(stall.cpu_ms, cpu() - before) };
    sleepOn();
  }, 10);
}
sleepOn();

const commands = {
  async stall() {
    const answer = stall;
    stall = { ms: 0, cpu_ms: 0 };
    return answer;
  },
  async emit({ count, inflight, size = 200, due = count, rate = 0 }) {
    const events = Array.from({ length: count }, (_, i) => [payload(size, i),
      Math.floor((i + 1) * due / count) > Math.floor(i * due / count) ? "bench" : "other"]);
    let next = 0;
    const begun = process.hrtime.bigint();
    const work = async () => {
      while (next < count) {
        const i = next++;
        if (rate) await sleep(Math.max(0, i * 1000 / rate - Number(process.hrtime.bigint() - begun) / 1e6));
        await emitted(...events[i]);
      }
    };
    if (inflight) await Promise.all(Array.from({ length: inflight }, work));
    else await Promise.all(events.map((event) => emitted(...event)));
    return { begun: Number(begun), ended: Number(process.hrtime.bigint()) };
  },
};

http.listen({ port: 0, host: "127.0.0.1", backlog: 4096 }, () => {
  process.stdout.write(JSON.stringify({ port: http.address().port }) + "\n");
});
for await (const line of createInterface({ input: process.stdin })) {
  const { op, ...rest } = JSON.parse(line);
  let answer;
  try { answer = { value: await commands[op](rest) }; } catch (e) { answer = { error: e.stack ?? String(e) }; }
  process.stdout.write(JSON.stringify(answer) + "\n");
}
process.exit(0);
