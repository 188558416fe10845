// Counts the numbered events ("n", emitter, seq) of one client, so that a stress test need not send
// each of them to Python: received, doubled, out of order and, against what was sent, lost.
const names = []; // emitters, shared by all clients: an entry of `order` means the same in each
const number = (name) => {
  const known = names.indexOf(name);
  return known >= 0 ? known : names.push(name) - 1;
};
const label = (entry) => `${names[Math.floor(entry / 2 ** 32)]}:${entry % 2 ** 32}`;

export class Tally {
  order = []; // emitter number * 2^32 + seq, in the order of receipt
  offsets = []; // of the entries of `order`; null where an event bore none
  marks = []; // [name of another event, count so far]
  emitters = new Map();
  onReceipt = null; // called with (emitter, seq)

  get count() {
    return this.order.length;
  }

  add(args) {
    const [name, seq] = args, offset = args.length > 2 ? args.at(-1) : null;
    const which = number(name);
    let e = this.emitters.get(name);
    if (!e) this.emitters.set(name, (e = { last: 0, seen: new Set(), duplicated: [], inverted: [] }));
    if (e.seen.has(seq)) e.duplicated.push(seq);
    else if (seq < e.last) e.inverted.push(seq);
    e.seen.add(seq);
    e.last = Math.max(e.last, seq);
    this.order.push(which * 2 ** 32 + seq);
    this.offsets.push(typeof offset === "string" ? offset : null);
    this.onReceipt?.(name, seq);
  }

  last(name) {
    return this.emitters.get(name)?.last ?? 0;
  }

  // Resolves when this client is at most a few events behind another one: it is live again.
  abreast(other, timeout) {
    return new Promise((resolve) => {
      const done = (result) => { clearTimeout(timer); this.onReceipt = null; resolve(result); };
      const timer = setTimeout(done, timeout, false);
      this.onReceipt = (name, seq) => { if (seq >= other.last(name) - 3) done(true); };
    });
  }

  mark(name) {
    this.marks.push([name, this.count]);
  }

  // expected: emitter -> how many it sent, numbered from 1; without it, up to the last one seen
  stats(expected = {}) {
    const per = {}, total = { received: this.count, duplicated: 0, inverted: 0, missing: 0 };
    for (const name of new Set([...this.emitters.keys(), ...Object.keys(expected)])) {
      const e = this.emitters.get(name) ?? { last: 0, seen: new Set(), duplicated: [], inverted: [] };
      const missing = [];
      for (let seq = 1; seq <= (expected[name] ?? e.last); seq++) if (!e.seen.has(seq)) missing.push(seq);
      per[name] = { received: e.seen.size, last: e.last };
      for (const [key, list] of Object.entries({ duplicated: e.duplicated, inverted: e.inverted, missing })) {
        per[name][key] = list.slice(0, 10);
        total[key] += list.length;
      }
    }
    const known = this.offsets.filter((o) => o !== null);
    total.without_offset = this.count - known.length;
    total.repeated_offsets = known.length - new Set(known).size;
    return { ...total, emitters: per, marks: this.marks.slice(-20) };
  }
}

// Whether two clients saw what both of them saw in one order, each packet under one offset.
export function compare(a, b) {
  const at = new Map(b.order.map((entry, i) => [entry, i]));
  const result = { shared: 0, only_first: 0, only_second: 0, out_of_order: [], offsets_differ: [] };
  let last = -1;
  a.order.forEach((entry, i) => {
    const j = at.get(entry);
    if (j === undefined) return void result.only_first++;
    result.shared++;
    if (j <= last) result.out_of_order.push(label(entry));
    if (a.offsets[i] !== b.offsets[j]) result.offsets_differ.push(label(entry));
    last = j;
  });
  result.only_second = b.count - result.shared;
  for (const key of ["out_of_order", "offsets_differ"]) result[key] = result[key].slice(0, 10);
  return result;
}
