/** One curve: drawn by uPlot, with what happened marked on it, in words, and as a table. */

import uPlot from "./vendor/uPlot.esm.js";
import { Lines, element, setText } from "./dom.js";
import { UNKNOWN, clock, cut, number } from "./format.js";
import { inWords } from "./happenings.js";
import { KINDS, kindOf } from "./kinds.js";
import { line } from "./series.js";

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

const HEIGHT = 92;
/** Letters of marks that are closer together, in pixels, would lie over one another. */
const APART = 12;
const TABLE_ROWS = 60;
/** Seconds between the times below a curve. */
const TIMES_APART = [1, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600];

/** @param {string} name of a custom property */
function ink(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

export class Chart {
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
    this.unit = element("span", { class: "unit" }, curve.unit);
    this.plotted = element("div", { class: "plot", role: "img", "aria-label": curve.title });
    this.rows = element("tbody");
    this.lines = new Lines(this.rows);
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
      element("figcaption", {}, title, " ", this.unit, element("span", { class: "legend" }, ...legend)),
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
      padding: [14, 16, 0, 0],
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
          space: 45,
          incrs: TIMES_APART,
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
    const { lines, factor = 1, unit } = this.curve;
    const { recent } = this.live;
    const index = this.plot?.cursor.idx;
    const time = typeof index === "number" ? this.data[0][index] : undefined;
    setText(this.unit, typeof time === "number" ? `${unit}, at ${clock(time)}` : unit);
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
    const wanted = [];
    for (let index = latest; index >= 0 && index > latest - TABLE_ROWS; index--) {
      const time = Number(times[index]);
      const until = index < latest ? Number(times[index + 1]) : Infinity;
      const here = this.marks.filter((mark) => mark.time >= time && mark.time < until);
      const words = here.map(inWords).join(" ");
      const values = columns.map((column) => number(column[index]));
      const key = [time, ...values, words].join(" ");
      wanted.push({ key, make: () => tableLine(time, values, words) });
    }
    this.lines.show(wanted);
  }
}

/**
 * @param {number} time
 * @param {string[]} values
 * @param {string} words what happened then
 */
function tableLine(time, values, words) {
  const head = element("th", { scope: "row" }, clock(time));
  if (words) head.append(element("span", { class: "what", title: words }, ` ${cut(words, 80)}`));
  return element("tr", {}, head, ...values.map((value) => element("td", {}, value)));
}

/**
 * A stroke as the line has it.
 * @param {number} index
 */
function sample(index) {
  return element("i", { class: `sample sample-${index + 1}`, "aria-hidden": "true" });
}
