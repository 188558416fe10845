// The page: shows the clients and the servers, and does what its buttons say.

import {Chaos} from "./chaos.js";
import {Client} from "./client.js";
import {Timeline} from "./timeline.js";

const SEATS = {Ada: "A", Ben: "B", Cleo: "A"};  // who begins where
const LOOK = 250;      // milliseconds between two looks at the servers
const PAST = 30;       // lines of what happened
const SUMMARY = 10000; // milliseconds between two announcements while chaos is on

const at = (id) => document.getElementById(id);
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const world = {clients: [], up: [], database: true, head: 0, kill, restart};
const chaos = new Chaos(world);
const views = [];
let announced = null;  // whether a loss was told

function text(element, value) {
  value = String(value);
  if (element.textContent !== value) element.textContent = value;
}

// Controls are never disabled: a disabled one drops the keyboard's focus. This says why nothing happens.
function enable(button, can) {
  button.setAttribute("aria-disabled", String(!can));
}

function onClick(button, act) {
  button.addEventListener("click", () => {
    if (button.getAttribute("aria-disabled") !== "true") act();
  });
}

// For the eye and, politely, for a screen reader. So not each of chaos's strokes is told here: the list has them.
function say(words) {
  text(at("story"), words);
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
    if (!chaos.on) say(`${name}: ${words}.`);
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
    card.dataset.state = live ? "live" : "away";
    text(find(".state"), live ? `live on node ${client.node}` : client.node ? "away" : "connecting");
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

function total(what) {
  return world.clients.reduce((sum, client) => sum + (client.tally[what] ?? client[what]), 0);
}

function show() {
  for (const view of views) view.show();
  for (const what of ["lost", "doubled", "recovered", "breaks", "replayed", "received"]) text(at(what), total(what));
  for (const what of ["lost", "doubled"]) at(what).classList.toggle("bad", total(what) > 0);
  const wrong = ["lost", "doubled"].filter((what) => total(what) > 0).map((what) => `${total(what)} ${what}`).join(", ");
  if (wrong && wrong !== announced) say(`Not exact: ${wrong}.`);
  announced = wrong;
}

// The database's number may come later than the packet.
function newest(client) {
  return Math.max(world.head, client.tally.highest ?? 0);
}

function draw() {
  if (at("pause").getAttribute("aria-pressed") === "true") return;
  for (const {client, timeline} of views) timeline.draw(newest(client));
}

function every(milliseconds, act) {
  act();
  setTimeout(() => every(milliseconds, act), typeof milliseconds === "function" ? milliseconds() : milliseconds);
}

// -- the servers ------------------------------------------------------------------------------------------

function kill(node) {
  world.clients.filter((client) => client.live && client.node === node).forEach((c) => c.expect(`node ${node} killed`));
  record(`node ${node} is killed (kill -9)`);
  if (!chaos.on) say(`Node ${node} is killed.`);
  world.up = world.up.filter((each) => each !== node);
  fetch(`/nodes/${node}/kill`, {method: "POST"});
}

function restart() {
  record("PostgreSQL is restarted");
  if (!chaos.on) say("PostgreSQL is restarted.");
  for (const view of views) view.timeline.note(newest(view.client) + 1, {mark: "PostgreSQL restarted"});
  world.database = false;
  fetch("/database/restart", {method: "POST"}).then(async (answer) => tellServers(await answer.json()));
}

async function look() {
  return tellServers(await (await fetch("/state")).json());
}

function tellServers(state) {
  world.up = Object.keys(state.nodes).filter((name) => state.nodes[name].up);
  world.database = state.database;
  world.head = state.head;
  for (const name of Object.keys(state.nodes)) {
    const up = world.up.includes(name);
    text(at(`node-${name}`), up ? "up" : "down");
    at(`node-${name}`).className = up ? "up" : "down";
    enable(at(`kill-${name}`), up);
  }
  text(at("database"), world.database ? "up" : "restarting");
  at("database").className = world.database ? "up" : "down";
  enable(at("restart"), world.database);
  return state;
}

async function keepLooking() {
  try {
    await look();
    setTimeout(keepLooking, LOOK);
  } catch {
    chaos.stop();
    at("chaos").setAttribute("aria-checked", "false");
    say("The demo has ended: start it again with sio-pg demo, and load this page anew.");
  }
}

// -- the controls -----------------------------------------------------------------------------------------

function summary() {
  return `${total("breaks")} breaks, ${total("recovered")} recovered, ${total("replayed")} packets replayed, ` +
    `${total("lost")} lost, ${total("doubled")} doubled`;
}

function toggleChaos() {
  if (chaos.on) chaos.stop();
  else chaos.start();
  at("chaos").setAttribute("aria-checked", String(chaos.on));
  say(chaos.on ? "Chaos is on." : `Chaos is off: ${summary()}.`);
}

function togglePause() {
  const paused = at("pause").getAttribute("aria-pressed") !== "true";
  at("pause").setAttribute("aria-pressed", String(paused));
}

function spoil(how) {
  const client = world.clients.find((each) => each.live);
  if (client === undefined) return;
  client.spoil = how;
  record(`${client.name}: this page ${how === "swallow" ? "swallows" : "repeats"} one packet`);
}

function reset() {
  for (const client of world.clients) {
    client.tally.reset();
    client.breaks = client.recovered = 0;
  }
  say("The counters are at 0.");
}

async function begin() {
  if (typeof io === "undefined") {
    say("socket.io-client could not be loaded. Without a network, start with: sio-pg demo --client-js PATH");
    return;
  }
  const state = await look();
  text(at("rate"), state.rate);
  const urls = {};
  for (const [name, {port}] of Object.entries(state.nodes)) urls[name] = `http://${location.hostname}:${port}`;
  for (const [name, node] of Object.entries(SEATS)) seat(name, node, urls);
  onClick(at("chaos"), toggleChaos);
  onClick(at("pause"), togglePause);
  for (const name of Object.keys(state.nodes)) onClick(at(`kill-${name}`), () => kill(name));
  onClick(at("restart"), restart);
  onClick(at("swallow"), () => spoil("swallow"));
  onClick(at("repeat"), () => spoil("repeat"));
  onClick(at("reset"), reset);
  keepLooking();
  every(100, show);
  every(() => (calm.matches ? 2000 : 100), draw);
  every(1000, () => views.forEach(({timeline}) => timeline.describe()));
  every(SUMMARY, () => { if (chaos.on && total("breaks") > 0) say(`Chaos is on: ${summary()}.`); });
  say("Now break something, or switch chaos on.");
}

begin();
