/** Which curves there are above the cameras, and what they show. */

import { Chart } from "./chart.js";
import { byId } from "./dom.js";
import { number } from "./format.js";
import { kindOf } from "./kinds.js";
import { gauge, percentile, rate, ratio } from "./series.js";

/** @typedef {import("./state.js").Live} Live */
/** @typedef {import("./chart.js").Curve} Curve */

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
      // The last bucket has no end.
      unit: `ms, cut at ${number(1000 * Number(bounds.at(-1)))}`,
      factor: 1000,
      lines: [
        { label: "p50", value: percentile(0.5, bounds), ink: "--line-1" },
        { label: "p99", value: percentile(0.99, bounds), ink: "--line-2", dash: DASHED },
      ],
    },
    {
      id: "accuracy",
      title: "Accuracy",
      unit: "%, estimated without held cameras",
      factor: 100,
      range: [0, 100],
      lines: [
        { label: "adapted", value: gauge("estimated_adapted"), ink: "--line-1" },
        { label: "frozen", value: gauge("estimated_source"), ink: "--line-2", dash: DASHED },
        { label: "by labels", value: gauge("window_accuracy"), ink: "--line-3", dash: DOTTED },
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

/** What an axis shows at least. */
const LEAST_SECONDS = 60;

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
