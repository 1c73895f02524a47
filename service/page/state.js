/**
 * What the page knows of the server, in bounds: a tab that is open for a day is as level as one
 * that was just opened. Knows nothing of how it is shown.
 */

import { isRoutine } from "./kinds.js";

/** @typedef {import("./wire").State} State */
/** @typedef {import("./wire").Tick} Tick */
/** @typedef {import("./wire").Row} Row */
/** @typedef {import("./wire").Happening} Happening */
/** @typedef {import("./wire").Counters} Counters */
/** @typedef {import("./wire").Gauges} Gauges */

/**
 * What was counted at a time. A gap is where nothing is known: the server was away.
 * @typedef {{time: number, counters: Counters, gauges: Gauges, gap?: boolean}} Point
 */

/** An hour at the server's usual five seconds. */
export const MOST_POINTS = 720;
/** Of those that are routine; and as many others. */
export const MOST_EVENTS = 200;
export const MOST_ROWS = 2000;
/** Of a stream's images: as many counts, as far apart as points are. */
export const MOST_SAMPLES = 60;
/** A camera that sends an image every ten seconds has a rate, too. */
const SAMPLES_OF_LATE = 5;
/** What was between two samples that are further apart is not known. */
const SAMPLES_APART = 30;
/** A clock was set where it goes back by more; the history's times are rounded. */
const SET_BACK = 1;

/** The counts of one stream's images, for its rate and its sparkline. */
class Samples {
  constructor() {
    /** @type {{time: number, images: number}[]} */
    this.kept = [];
  }

  /**
   * @param {number} time
   * @param {number} images
   */
  add(time, images) {
    const last = this.kept.at(-1);
    if (last && time <= last.time) return; // a state is told again
    // It was reset, or the server restarted; or nobody looked.
    if (last && (images < last.images || time - last.time > SAMPLES_APART)) this.kept = [];
    this.kept.push({ time, images });
    if (this.kept.length > MOST_SAMPLES) this.kept.shift();
  }

  /** Images a second between samples, the oldest first. */
  rates() {
    return this.kept.slice(1).map((sample, index) => {
      const before = this.kept[index];
      return (sample.images - before.images) / (sample.time - before.time);
    });
  }
}

export class Live {
  constructor() {
    /** @type {State | null} The latest whole state; what moves of it is below. */
    this.state = null;
    /** @type {Map<string, Row>} */
    this.rows = new Map();
    /** @type {Point[]} As far apart as the server's interval, the oldest first. */
    this.points = [];
    /** @type {Point[]} Of the latest interval, as they came. */
    this.recent = [];
    /** @type {Happening[]} The oldest first. */
    this.events = [];
    /** @type {Map<string, Samples>} */
    this.samples = new Map();
    this.leftOut = 0;
    this.heard = 0;
  }

  /** The server's time now, in seconds since 1970: its clock and this machine's may differ. */
  get now() {
    const latest = this.recent.at(-1);
    return latest ? latest.time + (performance.now() - this.heard) / 1000 : Date.now() / 1000;
  }

  /** @returns {Gauges} */
  get gauges() {
    return this.recent.at(-1)?.gauges ?? {};
  }

  /** @returns {Counters} */
  get counters() {
    return this.recent.at(-1)?.counters ?? {};
  }

  /**
   * Begin, or go on after a connection was lost.
   * @param {State} state
   */
  begin(state) {
    const restarted = this.state !== null && this.state.started !== state.started;
    const former = restarted ? this.points.filter(({ time }) => time < state.started) : [];
    const last = former.at(-1);
    const gap = last ? [{ time: last.time + 0.001, counters: {}, gauges: {}, gap: true }] : [];
    this.points = [...former, ...gap, ...history(state)].slice(-MOST_POINTS);
    this.recent = [];
    if (restarted) {
      this.samples.clear();
      const known = this.events.filter(({ time }) => time < state.started);
      const told = state.events.some(
        ({ event, time }) => event === "started" && Math.abs(time - state.started) < 60,
      );
      const restart = { time: state.started, event: "started", model: state.model.name };
      this.events = told ? known : [...known, restart];
    } else {
      this.events = [];
    }
    this.state = state;
    this.rows.clear();
    this.take(state);
    for (const name of this.samples.keys()) if (!this.rows.has(name)) this.samples.delete(name);
  }

  /**
   * Take what came within the last second.
   * @param {Tick} tick
   */
  take(tick) {
    this.heard = performance.now();
    const point = { time: tick.time, counters: tick.counters, gauges: tick.gauges };
    const interval = this.state?.interval ?? 5;
    const latest = this.recent.at(-1) ?? this.points.at(-1);
    if (latest && tick.time < latest.time - SET_BACK) this.setBack(tick.time);
    const last = this.points.at(-1);
    const isDue = !last || tick.time - last.time >= interval - 0.25;
    if (isDue) {
      this.points.push(point);
      if (this.points.length > MOST_POINTS) this.points.shift();
    }
    this.recent.push(point);
    // One older than the interval stays, for the rate over it.
    while (this.recent.length > 2 && this.recent[1].time <= tick.time - interval) {
      this.recent.shift();
    }
    for (const row of tick.streams) this.rows.set(row.name, row);
    for (const name of tick.gone ?? []) {
      this.rows.delete(name);
      this.samples.delete(name);
    }
    this.leftOut = tick.left_out ?? this.leftOut;
    if (this.rows.size > MOST_ROWS) this.forgetRows();
    if (isDue) this.sample(tick.time);
    this.addEvents(tick.events);
  }

  /**
   * The server's clock was set back: what is later than now never was.
   * @param {number} time
   */
  setBack(time) {
    this.points = this.points.filter((point) => point.time < time);
    this.recent = [];
    this.samples.clear();
  }

  /** @param {number} time */
  sample(time) {
    for (const [name, { images }] of this.rows) {
      if (images === null) continue;
      let samples = this.samples.get(name);
      if (!samples) this.samples.set(name, (samples = new Samples()));
      samples.add(time, images);
    }
  }

  /**
   * Images a second of a stream of late; null: not known yet.
   * @param {string} name
   */
  rate(name) {
    const kept = this.samples.get(name)?.kept.slice(-SAMPLES_OF_LATE) ?? [];
    if (kept.length < 2) return null;
    const [first, last] = [kept[0], kept[kept.length - 1]];
    return (last.images - first.images) / (last.time - first.time);
  }

  /**
   * @param {string} name
   * @returns {number[]}
   */
  rates(name) {
    return this.samples.get(name)?.rates() ?? [];
  }

  /** @param {Happening[]} events */
  addEvents(events) {
    if (!events.length) return;
    this.events.push(...events);
    for (const routine of [true, false]) {
      const those = this.events.filter((event) => isRoutine(event) === routine);
      const old = new Set(those.slice(0, -MOST_EVENTS));
      if (old.size) this.events = this.events.filter((event) => !old.has(event));
    }
  }

  /** Let go of the rows of least trouble that were seen longest ago. */
  forgetRows() {
    const all = [...this.rows.values()];
    all.sort((a, b) => a.trouble - b.trouble || (a.last_image ?? 0) - (b.last_image ?? 0));
    for (const { name } of all.slice(0, this.rows.size - MOST_ROWS)) {
      this.rows.delete(name);
      this.samples.delete(name);
    }
  }
}

/**
 * The server's last hour, from columns to points; those before its clock was set back, as far as
 * they are later than one that follows, are left out.
 * @param {State} state
 * @returns {Point[]}
 */
function history(state) {
  const { time = [], ...columns } = state.history;
  const earliest = time.map(Number);
  for (let at = earliest.length - 2; at >= 0; at--) {
    earliest[at] = Math.min(earliest[at], earliest[at + 1]);
  }
  const points = time.map((at, index) => {
    /** @type {Point} */
    const point = { time: Number(at), counters: {}, gauges: {} };
    for (const [name, column] of Object.entries(columns)) {
      const value = column[index];
      if (name in state.counters) {
        if (value !== null && value !== undefined && typeof value !== "boolean") {
          point.counters[name] = value;
        }
      } else if (!Array.isArray(value)) {
        point.gauges[name] = value ?? null;
      }
    }
    return point;
  });
  return points.filter((point, index) => point.time <= earliest[index]);
}
