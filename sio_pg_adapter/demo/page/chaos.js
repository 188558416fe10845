// Breaks things by itself: every kind of break in a random order, at random times.

const KINDS = ["cut", "cut", "cut everyone", "hop", "hop", "kill", "kill", "restart"];

export class Chaos {
  #world;
  #timer = null;
  #bag = [];  // the kinds that remain in this round

  /** `world` has clients, kill(node), restart(), up (the nodes that serve) and database (whether it serves). */
  constructor(world) {
    this.#world = world;
  }

  get on() {
    return this.#timer !== null;
  }

  start() {
    this.#timer ??= setTimeout(() => this.#next(), 300);
  }

  stop() {
    clearTimeout(this.#timer);
    this.#timer = null;
  }

  #next() {
    this.#timer = setTimeout(() => this.#next(), 900 + 1600 * Math.random());
    if (this.#bag.length === 0) this.#bag = shuffled(KINDS);
    const at = this.#bag.findIndex((kind) => this.#try(kind));  // the first kind that is possible now
    if (at >= 0) this.#bag.splice(at, 1);
  }

  #try(kind) {
    const {clients, up, database} = this.#world, live = shuffled(clients.filter((client) => client.live));
    if (kind === "kill") {
      if (up.length < 2 || !database) return false;  // a node must remain
      this.#world.kill(live[0]?.node ?? up[0]);  // the node of a client
    } else if (kind === "restart") {
      if (!database) return false;
      this.#world.restart();
    } else if (kind === "cut everyone") {
      if (live.length < 2) return false;
      live.forEach((client) => client.cut());
    } else {
      if (live.length === 0 || (kind === "hop" && !up.includes(live[0].other))) return false;
      live[0][kind]();
    }
    return true;
  }
}

function shuffled(list) {
  const all = [...list];
  for (let i = all.length - 1; i > 0; i--) {
    const j = Math.floor(Math.random() * (i + 1));
    [all[i], all[j]] = [all[j], all[i]];
  }
  return all;
}
