// The page: shows the clients and the servers, and acts on its buttons.

import {Chaos} from "./chaos.js";
import {Client} from "./client.js";
import {Timeline} from "./timeline.js";

const SEATS = {Ada: "A", Ben: "B", Cleo: "A"};  // the first node of each client
const POLL = 250;         // milliseconds between two reads of the servers' state
const POLL_ENDED = 1000;  // the same after the demo has ended
const PAST = 30;          // lines under "What happened"
const SUMMARY = 10000;    // milliseconds between two announcements during chaos
const LOADING = 700;      // milliseconds before and after the state of a page is read. There are events in both

const at = (id) => document.getElementById(id);
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const world = {clients: [], up: [], database: true, head: 0, kill, restart};
const chaos = new Chaos(world);
const views = [];
let settling = false;  // chaos is off, and not all clients are back
let announced = "";    // the wrong counts that were announced
let ended = false;     // the demo does not answer
let loading = false;   // the page is reloaded
let restarted = null;  // a restart of PostgreSQL that not all clients have got past: the wrong counts before it, the head

function text(element, value) {
  value = String(value);
  if (element.textContent !== value) element.textContent = value;
}

// A disabled control loses the keyboard's focus, so controls only announce that they do nothing.
function enable(button, can) {
  button.setAttribute("aria-disabled", String(!can || ended));
}

function onClick(button, act) {
  button.addEventListener("click", () => {
    if (button.getAttribute("aria-disabled") !== "true") act();
  });
}

// Show a text, and announce it to screen readers. `unseen` is only announced: the totals show the same.
function say(words, unseen = "") {
  const rest = document.createElement("span");
  rest.className = "unseen";
  rest.textContent = unseen && ` ${unseen}`;
  at("story").replaceChildren(words, rest);
}

// The list shows every break. Only those made by hand are announced.
function sayByHand(words) {
  if (!chaos.on && !settling) say(words);
}

function record(words, good) {
  const line = document.createElement("li"), time = new Date().toLocaleTimeString([], {hour12: false});
  line.className = good === undefined ? "" : good ? "good" : "bad";
  line.textContent = `${time}  ${good === undefined ? "" : good ? "✓ recovered  " : "✗ NOT RECOVERED  "}${words}`;
  at("past").prepend(line);
  while (at("past").children.length > PAST) at("past").lastChild.remove();
  at("nothing-yet").hidden = true;
}

// -- the clients ------------------------------------------------------------------------------------------

function seat(name, node, urls) {
  const card = at("client").content.cloneNode(true).firstElementChild;
  const find = (selector) => card.querySelector(selector);
  const timeline = new Timeline(find(".timeline"), name);
  const client = new Client(name, node, urls, timeline, (_, words, good) => {
    record(`${name}: ${words}`, good);
    sayByHand(`${name}: ${words}.`);
    show();  // the totals change together with the text
  });
  card.id = name;
  card.setAttribute("aria-labelledby", `${name}-name`);
  find("h3").id = `${name}-name`;
  text(find("h3"), name);
  card.querySelectorAll(".name").forEach((each) => text(each, name));
  onClick(find("[data-do=cut]"), () => client.cut());
  onClick(find("[data-do=hop]"), () => client.hop());
  at("clients").append(card);
  world.clients.push(client);
  views.push({client, timeline, show() {
    const {socket, tally, live} = client;
    card.dataset.state = ended ? "ended" : live ? "live" : "away";
    const state = live ? `live on node ${client.node}` : client.node ? "away" : "connecting";
    text(find(".state"), ended ? "the demo has ended" : state);
    text(find(".sid code"), client.sid ?? "–");
    card.querySelectorAll("[data-count]").forEach((each) => {
      text(each, tally[each.dataset.count]);
      each.classList.toggle("bad", ["lost", "doubled"].includes(each.dataset.count) && each.textContent !== "0");
    });
    text(find(".other"), client.other);
    enable(find("[data-do=cut]"), live && socket.connected);
    enable(find("[data-do=hop]"), live && socket.connected && world.up.includes(client.other));
  }});
}

function total(name) {
  return world.clients.reduce((sum, client) => sum + (client.tally[name] ?? client[name]), 0);
}

function show() {
  for (const view of views) view.show();
  for (const name of ["lost", "doubled", "recovered", "breaks", "replayed", "received"]) text(at(name), total(name));
  for (const name of ["lost", "doubled"]) at(name).classList.toggle("bad", total(name) > 0);
  const wrong = ["lost", "doubled"].filter((name) => total(name) > 0).map((name) => `${total(name)} ${name}`).join(", ");
  if (wrong && wrong !== announced) say(`Not exact: ${wrong}.`);
  announced = wrong;
  showRestarted();
  if (settling && world.clients.every((client) => client.live)) {
    settling = false;
    say(`Chaos is off: ${summary()}.`);
  }
}

// Say how a restart of PostgreSQL ended, once each client has an event that was emitted after it.
function showRestarted() {
  if (restarted === null || restarted.head === null || ended) return;
  if (!world.clients.every((client) => client.live && client.tally.highest > restarted.head)) return;
  const [lost, doubled] = ["lost", "doubled"].map((name) => total(name) - restarted[name]);
  const words = `PostgreSQL is back, and all clients get its events: ${lost} lost, ${doubled} doubled`;
  restarted = null;
  record(words);
  sayByHand(`${words}.`);
}

// The head is polled, so an event may arrive before it.
function newest(client) {
  return Math.max(world.head, client.tally.highest ?? 0);
}

function draw() {
  if (at("pause").getAttribute("aria-pressed") === "true") return;
  for (const {client, timeline} of views) timeline.draw(newest(client));
}

function every(milliseconds, act) {
  if (ended) return;
  act();
  setTimeout(() => every(milliseconds, act), typeof milliseconds === "function" ? milliseconds() : milliseconds);
}

// -- the servers ------------------------------------------------------------------------------------------

function kill(node) {
  world.clients.filter((client) => client.live && client.node === node).forEach((c) => c.expect(`node ${node} killed`));
  record(`node ${node} is killed (kill -9)`);
  sayByHand(`Node ${node} is killed.`);
  world.up = world.up.filter((each) => each !== node);
  fetch(`/nodes/${node}/kill`, {method: "POST"}).catch(end);
}

function restart() {
  record("PostgreSQL is restarted");
  sayByHand("PostgreSQL is restarted.");
  for (const view of views) view.timeline.note(newest(view.client) + 1, {mark: "PostgreSQL restarted"});
  world.database = false;
  for (const name of ["restart", "reload"]) enable(at(name), false);  // until the database is back
  restarted = {lost: total("lost"), doubled: total("doubled"), head: null};
  fetch("/database/restart", {method: "POST"}).then(async (answer) => showServers(await answer.json())).catch(end);
}

// Do what a reload of the page does, but keep the counts and the timelines.
async function reload() {
  if (loading) return;
  loading = true;
  record("the page is reloaded");
  sayByHand("The page is reloaded.");
  for (const client of world.clients) client.leave();
  show();
  await pause(LOADING);
  const state = await load();
  await pause(LOADING);
  loading = false;
  if (!ended) for (const client of world.clients) client.enter(state);
}

function pause(milliseconds) {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

// Return the number of the last event and the position of its snapshot, or null at the end of the demo.
async function load() {
  while (!ended) {
    try {
      const answer = await fetch("/load");
      if (answer.ok) return await answer.json();
    } catch {
      unanswered();
    }
    await pause(POLL);  // PostgreSQL restarts, or the browser is offline
  }
  return null;
}

async function readState() {
  return (await fetch("/state")).json();
}

function showServers({nodes, database, head}) {
  world.up = Object.keys(nodes).filter((name) => nodes[name].up);
  world.database = database;
  world.head = head;
  if (database && restarted !== null) restarted.head ??= head;
  for (const name of Object.keys(nodes)) {
    const up = world.up.includes(name);
    showServer(`node-${name}`, up, "up", "down");
    enable(at(`kill-${name}`), up);
  }
  showServer("database", database, "up", "restarting");
  enable(at("restart"), database);
  enable(at("reload"), database && !loading && world.clients.every((client) => client.tally.highest !== null));
}

function showServer(id, up, good, bad) {
  text(at(id), ended ? "ended" : up ? good : bad);
  at(id).className = up ? "up" : "down";
}

async function poll() {
  try {
    const state = await readState();
    if (ended) return;
    showServers(state);
  } catch {
    unanswered();
  }
  if (!ended) setTimeout(poll, POLL);
}

// -- the end of the demo ----------------------------------------------------------------------------------

// The demo does not answer: it has ended, unless the browser itself is offline (a switch in its developer tools).
function unanswered() {
  if (navigator.onLine) end();
}

function end() {
  if (ended) return;
  ended = true;
  chaos.stop();
  settling = false;
  at("chaos").setAttribute("aria-checked", "false");
  for (const client of world.clients) client.end();
  showServers({nodes: {A: {up: false}, B: {up: false}}, database: false, head: world.head});
  show();
  for (const button of document.querySelectorAll("button")) enable(button, false);
  document.body.classList.add("ended");
  document.title = `Ended: ${document.title}`;
  at("ended").hidden = false;
  say("The demo has ended. Start it again with sio-pg demo.");
  setTimeout(awaitRestart, POLL_ENDED);
}

async function awaitRestart() {
  try {
    await readState();
    location.reload();  // the nodes have new ports
  } catch {
    setTimeout(awaitRestart, POLL_ENDED);
  }
}

// -- the controls -----------------------------------------------------------------------------------------

function summary() {
  return `${total("breaks")} breaks, ${total("recovered")} recovered, ${total("replayed")} events replayed, ` +
    `${total("lost")} lost, ${total("doubled")} doubled`;
}

function toggleChaos() {
  settling = chaos.on;
  if (chaos.on) chaos.stop();
  else chaos.start();
  at("chaos").setAttribute("aria-checked", String(chaos.on));
  say(chaos.on ? "Chaos is on." : "Chaos ends when all clients are back.");
  show();  // they may be back already
}

function togglePause() {
  const paused = at("pause").getAttribute("aria-pressed") !== "true";
  at("pause").setAttribute("aria-pressed", String(paused));
}

function spoil(action) {
  const client = world.clients.find((each) => each.live);
  if (client === undefined) return;
  client.spoil = action;
  record(`${client.name}: this page ${action === "swallow" ? "drops" : "repeats"} an event`);
}

function reset() {
  for (const client of world.clients) {
    client.tally.reset();
    client.breaks = client.recovered = 0;
  }
  if (restarted !== null) restarted.lost = restarted.doubled = 0;
  say("The counters are at 0.");
}

async function begin() {
  const state = await readState();
  showServers(state);
  text(at("rate"), state.rate);
  const urls = {};
  for (const [name, {port}] of Object.entries(state.nodes)) urls[name] = `http://${location.hostname}:${port}`;
  for (const [name, node] of Object.entries(SEATS)) seat(name, node, urls);
  onClick(at("chaos"), toggleChaos);
  onClick(at("pause"), togglePause);
  onClick(at("reload"), reload);
  for (const name of Object.keys(state.nodes)) onClick(at(`kill-${name}`), () => kill(name));
  onClick(at("restart"), restart);
  onClick(at("swallow"), () => spoil("swallow"));
  onClick(at("repeat"), () => spoil("repeat"));
  onClick(at("reset"), reset);
  poll();
  every(100, show);
  every(() => (calm.matches ? 2000 : 100), draw);
  every(1000, () => views.forEach(({timeline}) => timeline.describe()));
  every(SUMMARY, () => { if (chaos.on && total("breaks") > 0) say("Chaos is on.", `${summary()}.`); });
  say("Now break something, or switch chaos on.");
}

begin();
