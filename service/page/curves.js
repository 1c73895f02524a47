/** The curves above the cameras: what was counted, with what happened marked on each. */

import uPlot from "./vendor/uPlot.esm.js";
import { byId, element, setText } from "./dom.js";
import { UNKNOWN, clock, cut, number } from "./format.js";
import { KINDS, inWords, kindOf } from "./happenings.js";
import { gauge, line, percentile, rate, ratio } from "./series.js";

/** @typedef {import("./state.js").Live} Live */
/** @typedef {import("./state.js").Point} Point */
/** @typedef {import("./series.js").Value} Value */
/** @typedef {import("./wire").Happening} Happening */

/**
 * @typedef {object} Line
 * @property {string} label
 * @property {Value} value
 * @property {string} ink a colour of style.css
 * @property {number[]} [dash] what tells it from the others without colours
 */

/**
 * @typedef {object} Curve
 * @property {string} id
 * @property {string} title
 * @property {string} unit
 * @property {number} [factor] from what is counted to the unit
 * @property {Line[]} lines
 * @property {[number, number]} [range] that the axis has at least
 */

const DASHED = [5, 3];
const DOTTED = [1.5, 2.5];

/**
 * @param {(number | null)[]} bounds of the latency's buckets
 * @returns {Curve[]}
 */
function curves(bounds) {
  return [
    {
      id: "images",
      title: "Images",
      unit: "a second",
      lines: [
        { label: "answered", value: rate("images"), ink: "--line-1" },
        { label: "refused", value: rate("rejected"), ink: "--line-2", dash: DASHED },
      ],
    },
    {
      id: "latency",
      title: "Latency",
      unit: "ms",
      factor: 1000,
      lines: [
        { label: "p50", value: percentile(0.5, bounds), ink: "--line-1" },
        { label: "p99", value: percentile(0.99, bounds), ink: "--line-2", dash: DASHED },
      ],
    },
    {
      id: "accuracy",
      title: "Accuracy",
      unit: "%, of adapted and frozen estimated",
      factor: 100,
      range: [0, 100],
      lines: [
        { label: "adapted", value: gauge("estimated_adapted"), ink: "--line-1" },
        { label: "frozen", value: gauge("estimated_source"), ink: "--line-2", dash: DASHED },
        { label: "true", value: gauge("window_accuracy"), ink: "--line-3", dash: DOTTED },
      ],
    },
    {
      id: "entropy",
      title: "Entropy",
      unit: "nats",
      lines: [{ label: "mean", value: ratio("entropy_sum", "entropy_count"), ink: "--line-1" }],
    },
    {
      id: "selection",
      title: "Selected to learn from",
      unit: "%",
      factor: 100,
      range: [0, 100],
      lines: [{ label: "share", value: ratio("selected", "considered"), ink: "--line-1" }],
    },
    {
      id: "steps",
      title: "Learning steps",
      unit: "a second",
      lines: [{ label: "steps", value: rate("steps"), ink: "--line-1" }],
    },
    {
      id: "drift",
      title: "Drift, the furthest camera",
      unit: "%",
      factor: 100,
      lines: [{ label: "drift", value: gauge("drift"), ink: "--line-1" }],
    },
    {
      id: "suspects",
      title: "Suspect frames",
      unit: "a second",
      lines: [{ label: "suspect", value: rate("suspects"), ink: "--line-2" }],
    },
  ];
}

const HEIGHT = 92;
/** Letters of marks that are closer together, in pixels, would lie over one another. */
const APART = 12;
const TABLE_ROWS = 60;
/** What an axis shows at least. */
const LEAST_SECONDS = 60;

/** @param {string} name of a custom property */
function ink(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/**
 * The curves, once the server has said what it counts.
 */
export class Curves {
  /**
   * @param {Live} live
   */
  constructor(live) {
    this.live = live;
    const bounds = live.state?.latency_bounds ?? [];
    this.all = curves(bounds).map((curve) => new Chart(curve, live));
    byId("curves-grid", HTMLElement).replaceChildren(...this.all.map(({ figure }) => figure));
    this.minutes = byId("minutes", HTMLSelectElement);
    this.minutes.addEventListener("change", () => this.draw());
    const sizes = new ResizeObserver(() => this.all.forEach((chart) => chart.resize()));
    sizes.observe(byId("curves-grid", HTMLElement));
    for (const query of ["(prefers-color-scheme: dark)", "(forced-colors: active)"]) {
      matchMedia(query).addEventListener("change", () => this.draw());
    }
  }

  /** Draw them anew, with the points and marks that there are. */
  draw() {
    const { points, events, now } = this.live;
    const asked = now - 60 * Number(this.minutes.value);
    const from = Math.min(Math.max(asked, points[0]?.time ?? now), now - LEAST_SECONDS);
    const shown = points.filter(({ time }) => time >= from);
    const marks = events.filter((event) => event.time >= from && kindOf(event));
    for (const chart of this.all) chart.draw([from, now], shown, marks);
  }

  /** Tell the latest values, which are known more often than there is a point. */
  tell() {
    for (const chart of this.all) chart.tell();
  }
}

class Chart {
  /**
   * @param {Curve} curve
   * @param {Live} live
   */
  constructor(curve, live) {
    this.curve = curve;
    this.live = live;
    /** @type {Happening[]} */
    this.marks = [];
    /** @type {[number, number]} */
    this.span = [0, 1];
    /** @type {(number | null)[][]} Times, then a list for each line. */
    this.data = [[], ...curve.lines.map(() => [])];
    this.values = curve.lines.map(() => element("b", {}, UNKNOWN));
    const legend = curve.lines.map((each, index) =>
      element(
        "span",
        { class: "line" },
        sample(index),
        curve.lines.length > 1 ? `${each.label} ` : "",
        this.values[index],
      ),
    );
    const title = element("span", { class: "title" }, curve.title);
    const unit = element("span", { class: "unit" }, curve.unit);
    this.plotted = element("div", { class: "plot", role: "img", "aria-label": curve.title });
    this.rows = element("tbody");
    this.table = element(
      "details",
      { class: "points" },
      element("summary", {}, "Table", element("span", { class: "hidden" }, ` of ${curve.title}`)),
    );
    this.table.append(this.emptyTable());
    this.table.addEventListener("toggle", () => this.fillTable());
    this.figure = element(
      "figure",
      { id: `curve-${curve.id}` },
      element("figcaption", {}, title, " ", unit, element("span", { class: "legend" }, ...legend)),
      this.plotted,
      this.table,
    );
    /** @type {uPlot | null} Made once its place has a size. */
    this.plot = null;
  }

  emptyTable() {
    const { title, unit, lines } = this.curve;
    const heads = ["Time", ...lines.map(({ label }) => label)];
    return element(
      "div",
      { class: "scroll", tabindex: "0", role: "group", "aria-label": `${title}, table` },
      element(
        "table",
        {},
        element("caption", {}, `${title}, ${unit}: the latest first`),
        element(
          "thead",
          {},
          element("tr", {}, ...heads.map((head) => element("th", { scope: "col" }, head))),
        ),
        this.rows,
      ),
    );
  }

  /**
   * @param {[number, number]} span of time that is shown
   * @param {Point[]} points
   * @param {Happening[]} marks
   */
  draw(span, points, marks) {
    const { factor = 1, lines } = this.curve;
    this.span = span;
    this.marks = marks;
    this.data = [
      points.slice(1).map(({ time }) => time),
      ...lines.map(({ value }) =>
        line(points, value).map((found) => (found === null ? null : factor * found)),
      ),
    ];
    this.resize();
    this.plot?.setData(/** @type {uPlot.AlignedData} */ (this.data));
    this.describe();
    if (this.table.open) this.fillTable();
  }

  resize() {
    const width = Math.floor(this.plotted.clientWidth);
    if (!width) return;
    if (!this.plot) this.plot = this.make(width);
    else if (this.plot.width !== width) this.plot.setSize({ width, height: HEIGHT });
  }

  /** @param {number} width */
  make(width) {
    const { lines, range } = this.curve;
    /** @type {uPlot.Axis} */
    const axis = {
      stroke: () => ink("--quiet"),
      font: "11px system-ui, sans-serif",
      grid: { stroke: () => ink("--grid"), width: 1 },
      ticks: { show: false },
    };
    /** @type {uPlot.Options} */
    const options = {
      width,
      height: HEIGHT,
      legend: { show: false },
      cursor: { sync: { key: "curves" }, drag: { x: false, y: false }, points: { size: 5 } },
      padding: [14, 6, 0, 0],
      scales: {
        x: { range: () => this.span },
        y: {
          range: (_, low, high) =>
            range ?? [Math.min(0, low ?? 0), 1.08 * (high || 0) || 1],
        },
      },
      axes: [
        {
          ...axis,
          size: 18,
          gap: 2,
          space: 60,
          values: (_, splits, _axis, _space, step) =>
            splits.map((time) => clock(time).slice(0, step < 60 ? 8 : 5)),
        },
        {
          ...axis,
          size: 40,
          gap: 4,
          space: 24,
          values: (_, splits) => splits.map((value) => number(value).replace(/\.0+$|(\.\d)0$/, "$1")),
        },
      ],
      series: [
        {},
        ...lines.map(({ label, ink: colour, dash }) => ({
          label,
          stroke: () => ink(colour),
          width: 1.5,
          ...(dash ? { dash } : {}),
          points: { show: false },
        })),
      ],
      hooks: {
        draw: [(/** @type {uPlot} */ plot) => this.mark(plot)],
        setCursor: [() => this.tell()],
      },
    };
    return new uPlot(options, /** @type {uPlot.AlignedData} */ (this.data), this.plotted);
  }

  /**
   * Lines where something happened, with the letter of its kind above.
   * @param {uPlot} plot
   */
  mark(plot) {
    const { ctx, bbox } = plot;
    const ratio = devicePixelRatio;
    ctx.save();
    ctx.strokeStyle = ctx.fillStyle = ink("--mark");
    ctx.lineWidth = ratio;
    ctx.setLineDash([2 * ratio, 2 * ratio]);
    ctx.font = `bold ${10 * ratio}px system-ui, sans-serif`;
    ctx.textAlign = "center";
    ctx.textBaseline = "bottom";
    let free = -Infinity;
    for (const happening of this.marks) {
      const x = Math.round(plot.valToPos(happening.time, "x", true));
      if (x < bbox.left || x > bbox.left + bbox.width) continue;
      if (x < free - (APART * ratio) / 2) continue; // those of one moment are one line
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
      const kind = kindOf(happening);
      if (x >= free && kind) {
        ctx.fillText(KINDS[kind].letter, x, bbox.top - ratio);
        free = x + APART * ratio;
      }
    }
    ctx.restore();
  }

  /** Tell each line's value: under the pointer, or the latest. */
  tell() {
    const { lines, factor = 1 } = this.curve;
    const { recent } = this.live;
    const index = this.plot?.cursor.idx;
    lines.forEach(({ value }, place) => {
      const column = this.data[place + 1];
      const latest = recent.length > 1 ? value(recent[0], recent[recent.length - 1]) : null;
      const now = latest === null ? column.at(-1) : factor * latest;
      setText(this.values[place], number(typeof index === "number" ? column[index] : now));
    });
  }

  /** What is seen at a glance, for those who do not see it. */
  describe() {
    const { title, unit, lines } = this.curve;
    const parts = lines.map(({ label }, place) => {
      const known = this.data[place + 1].filter((value) => value !== null).map(Number);
      if (!known.length) return `${label}: not known`;
      const [low, high] = [Math.min(...known), Math.max(...known)];
      return `${label}: now ${number(known.at(-1))}, from ${number(low)} to ${number(high)}`;
    });
    const marked = this.marks.length ? `; ${this.marks.length} events marked` : "";
    this.plotted.setAttribute("aria-label", `${title}, ${unit}. ${parts.join("; ")}${marked}`);
  }

  fillTable() {
    if (!this.table.open) return;
    const [times, ...columns] = this.data;
    const latest = times.length - 1;
    const rows = [];
    for (let index = latest; index >= 0 && index > latest - TABLE_ROWS; index--) {
      const time = Number(times[index]);
      const until = index < latest ? Number(times[index + 1]) : Infinity;
      const here = this.marks.filter((mark) => mark.time >= time && mark.time < until);
      const cells = columns.map((column) => element("td", {}, number(column[index])));
      const words = here.map(inWords).join(" ");
      const head = element("th", { scope: "row" }, clock(time));
      if (words) head.append(element("span", { class: "what", title: words }, ` ${cut(words, 80)}`));
      rows.push(element("tr", {}, head, ...cells));
    }
    this.rows.replaceChildren(...rows);
  }
}

/**
 * A stroke as the line has it.
 * @param {number} index
 */
function sample(index) {
  return element("i", { class: `sample sample-${index + 1}`, "aria-hidden": "true" });
}
