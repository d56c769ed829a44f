// What is known of the gateway: the last snapshot with all frames since, and a minute of history.
//
// Owns every figure that is computed here. Never touches the document. Memory is bounded: by the
// number of models and devices, and WINDOW_US of history.

export const WINDOW_US = 60e6;
export const STATES = ["absent", "loading", "resident", "evicting"];
export const EXEC = 0;
export const LOAD = 1;
const MAX_BARS = 6000; // of a lane: 30 s of 200 executions a second
const MAX_WORST = 400;

class Model {
  constructor(name) {
    this.name = name;
    this.history = []; // {at, served, missed, refused, late, latency, reasons}: counted then; the first is the oldest needed
    this.queued = this.cancelled = this.invalid = this.cold = this.loads = this.evictions = 0;
  }

  // `isOwn` says of a reason whether the client could have avoided it: no promise was broken then.
  count(row, at, isOwn) {
    const [, served, cancelled, invalid, queued, latency, cold, loads, evictions, reasons] = row;
    let missed = 0;
    for (const reason in reasons) if (!isOwn(reason)) missed += reasons[reason];
    let refused = 0, late = 0;
    for (const reason in reasons) {
      if (reason.startsWith("rejected:")) refused += reasons[reason];
      else late += reasons[reason];
    }
    this.history.push({ at, served, missed, refused, late, latency, reasons });
    Object.assign(this, { cancelled, invalid, queued, cold, loads, evictions });
    this.forget(at - WINDOW_US);
  }

  // Keeps one point that is older, to count from.
  forget(before) {
    let old = 0;
    while (old + 1 < this.history.length && this.history[old + 1].at <= before) old++;
    if (old) this.history.splice(0, old);
  }

  get last() { return this.history.at(-1) ?? NOTHING; }
}

const NOTHING = { at: 0, served: 0, missed: 0, refused: 0, late: 0, latency: 0, reasons: {} };

class Device {
  constructor(worker) {
    this.worker = worker;
    this.lanes = [[], []]; // bars {begin, end, busy, model, rows, actions, ok}, in order of their ends
    this.holds = new Map(); // model → {state, pages}
    this.figures = [];
    this.version = 0; // counts changes of `holds`
  }

  // Share of the time that the lane was busy from `from` to `to`.
  busy(lane, from, to) {
    let busy = 0;
    const bars = this.lanes[lane];
    for (let i = bars.length - 1; i >= 0 && bars[i].end > from; i--) {
      const bar = bars[i];
      const share = bar.end > bar.begin ? (Math.min(bar.end, to) - Math.max(bar.begin, from)) / (bar.end - bar.begin) : 0;
      busy += bar.busy * Math.max(0, share);
    }
    return busy / (to - from);
  }

  pages(state) {
    let pages = 0;
    for (const held of this.holds.values()) if (held.state === state) pages += held.pages;
    return pages;
  }
}

export class Store {
  constructor() {
    this.epoch = -1;
    this.at = 0; // µs, of the last event
    this.openedAt = null;
    this.interval = 500e3;
    this.models = [];
    this.devices = [];
    this.lost = [];
    this.worst = [];
    this.unnamed = {};
    this.remedies = {};
    this.scaling = null;
    this.instants = []; // {at, wall} of frames within WINDOW_US: points of the chart
    this.skew = Infinity; // local µs less the gateway's, at best
  }

  // The gateway's time now, in µs.
  now() { return performance.now() * 1e3 - this.skew; }

  snapshot(data) {
    if (data.at_us < this.at) this.restart();
    this.openedAt ??= data.at_us;
    const models = new Map(this.models.map((model) => [model.name, model]));
    const devices = new Map(this.devices.map((device) => [device.worker, device]));
    this.names(data);
    this.models = data.models.map((told, index) =>
      Object.assign(models.get(told.name) ?? new Model(told.name), told, { index, held: [0, 0, 0, 0] }));
    this.devices = data.devices.map((told, index) => {
      const { holds, ...rest } = told;
      const device = Object.assign(devices.get(told.worker) ?? new Device(told.worker), rest, { index });
      device.holds = new Map();
      for (let i = 0; i < holds.length; i += 3) this.hold(device, holds[i], holds[i + 1], holds[i + 2]);
      return device;
    });
    this.lost = data.lost;
    this.merge(data);
    for (const model of this.models) if (!model.history.length) model.history.push({ ...NOTHING, at: data.at_us });
  }

  frame(data) {
    if (data.epoch !== this.epoch) return; // a snapshot is on its way
    for (let i = 0; i < data.holds.length; i += 4) {
      this.hold(this.devices[data.holds[i]], data.holds[i + 1], data.holds[i + 2], data.holds[i + 3]);
    }
    for (const [device, lane, model, begin, end, busy, rows, actions, ok] of data.bars) {
      const bars = this.devices[device].lanes[lane];
      bars.push({ begin, end, busy, rows, actions, ok, model: this.models[model] ?? null });
      if (bars.length > MAX_BARS) bars.splice(0, bars.length - MAX_BARS / 2);
    }
    this.merge(data);
    this.worst = this.worst.filter((request) => request.at_us > this.at - WINDOW_US);
    if (this.worst.length > MAX_WORST) {
      this.worst = this.worst.sort(byBadness).slice(0, MAX_WORST / 2);
    }
    if (data.at_us > (this.instants.at(-1)?.at ?? -1)) this.instants.push({ at: data.at_us, wall: Date.now() / 1e3 });
    while (this.instants[0].at < this.at - WINDOW_US) this.instants.shift();
  }

  names(data) {
    this.epoch = data.epoch;
    this.version = data.version;
    this.phase = data.phase;
    this.interval = data.interval_ms * 1e3;
    const own = new Set(data.clients_own);
    this.remedies = data.remedies;
    this.isOwn = (reason) => own.has(reason.split(":")[1]);
  }

  // Another process answers under the same address.
  restart() {
    Object.assign(this, { models: [], devices: [], worst: [], openedAt: null, skew: Infinity });
    this.instants = [];
  }

  merge(data) {
    this.at = data.at_us;
    this.skew = Math.min(this.skew + 50, performance.now() * 1e3 - data.at_us); // clocks drift apart
    for (const row of data.counts) this.models[row[0]].count(row, data.at_us, this.isOwn);
    for (const row of data.figures) this.devices[row[0]].figures = row;
    this.unnamed = data.unnamed;
    this.scaling = data.scaling;
    const known = new Set(this.worst.map((request) => request.request_id + request.at_us));
    this.worst.push(...data.worst.filter((request) => !known.has(request.request_id + request.at_us)));
  }

  hold(device, index, state, pages) {
    const model = this.models[index];
    const before = device.holds.get(model);
    if (before) model.held[before.state]--;
    if (state === 0) device.holds.delete(model);
    else device.holds.set(model, { state, pages });
    if (state !== 0) model.held[state]++;
    device.version++;
  }

  // What became of the model's requests lately: differences over WINDOW_US.
  // Asked for many times per event, so it is kept until the next.
  lately(model) {
    if (model.latelyAt !== this.at || model.latelyOf !== model.last) {
      model.lately = this.differences(model);
      model.latelyAt = this.at;
      model.latelyOf = model.last;
    }
    return model.lately;
  }

  differences(model) {
    const from = Math.max(this.at - WINDOW_US, this.openedAt ?? 0);
    const seconds = Math.max((this.at - from) / 1e6, this.interval / 1e6);
    const last = model.last;
    let first = model.history[0] ?? NOTHING;
    for (const point of model.history) { if (point.at > from) break; first = point; }
    const served = last.served - first.served;
    const missed = last.missed - first.missed;
    return {
      served, missed, first, last, seconds,
      goodput: served / seconds,
      attainment: served + missed ? served / (served + missed) : null,
      latency: served ? (last.latency - first.latency) / served : null,
    };
  }

  // The same, of several models in sum, with the reasons.
  summary(models) {
    const sum = { served: 0, missed: 0, refused: 0, late: 0, queued: 0, seconds: 1, reasons: new Map() };
    for (const model of models) {
      const { served, missed, first, last, seconds } = this.lately(model);
      sum.served += served;
      sum.missed += missed;
      sum.refused += last.refused - first.refused;
      sum.late += last.late - first.late;
      sum.queued += model.queued;
      sum.seconds = seconds;
      for (const reason in last.reasons) {
        const lately = last.reasons[reason] - (first.reasons[reason] ?? 0);
        const known = sum.reasons.get(reason) ?? { lately: 0, total: 0 };
        sum.reasons.set(reason, { lately: known.lately + lately, total: known.total + last.reasons[reason] });
      }
    }
    return sum;
  }

  // Rates between the last frames, of these models in sum: from their histories, so that they are
  // right at once when others are chosen.
  rates(models) {
    const { instants } = this;
    const sums = instants.map(() => ({ served: 0, refused: 0, late: 0 }));
    for (const { history } of models) {
      let place = 0;
      for (let i = 0; i < instants.length && history.length; i++) {
        while (place + 1 < history.length && history[place + 1].at <= instants[i].at) place++;
        const { served, refused, late } = history[place];
        sums[i].served += served;
        sums[i].refused += refused;
        sums[i].late += late;
      }
    }
    const chart = { at: [], goodput: [], refused: [], late: [] };
    for (let i = 1; i < instants.length; i++) {
      const seconds = (instants[i].at - instants[i - 1].at) / 1e6;
      chart.at.push(instants[i].wall);
      chart.goodput.push((sums[i].served - sums[i - 1].served) / seconds);
      chart.refused.push((sums[i].refused - sums[i - 1].refused) / seconds);
      chart.late.push((sums[i].late - sums[i - 1].late) / seconds);
    }
    return chart;
  }
}

export function stateOf(model) {
  if (model.unavailable_reason !== null) return "unavailable";
  if (model.held[2]) return "resident";
  if (model.held[1]) return "loading";
  return "absent";
}

// The worst first: what was not served goes before what was.
export function byBadness(a, b) {
  const badness = ({ slack_ms: slack, outcome }) => (outcome === "served" ? slack : Math.min(0, slack ?? 0));
  return badness(a) - badness(b) || b.at_us - a.at_us;
}
