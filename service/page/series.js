/** From counters to what is drawn: rates, ratios, means and percentiles between two points. */

/** @typedef {import("./state.js").Point} Point */
/** @typedef {(before: Point, after: Point) => number | null} Value */

/**
 * How much a counter grew; null where that is not known, or where it began anew.
 * @param {string} name
 * @returns {Value}
 */
export function growth(name) {
  return (before, after) => {
    const [from, to] = [before.counters[name], after.counters[name]];
    if (typeof from !== "number" || typeof to !== "number" || to < from) return null;
    return to - from;
  };
}

/**
 * @param {string} name of a counter
 * @returns {Value}
 */
export function rate(name) {
  const grown = growth(name);
  return (before, after) => {
    const more = grown(before, after);
    const seconds = after.time - before.time;
    return more === null || seconds <= 0 ? null : more / seconds;
  };
}

/**
 * Of what a counter grew by a share of what another did; null where that did not grow.
 * @param {string} part
 * @param {string} whole
 * @returns {Value}
 */
export function ratio(part, whole) {
  const [some, all] = [growth(part), growth(whole)];
  return (before, after) => {
    const [numerator, denominator] = [some(before, after), all(before, after)];
    return numerator === null || !denominator ? null : numerator / denominator;
  };
}

/**
 * @param {string} name
 * @returns {Value}
 */
export function gauge(name) {
  return (_, after) => {
    const value = after.gauges[name];
    return typeof value === "number" ? value : null;
  };
}

/**
 * The time below which a share of the requests between two points stayed, in seconds; from
 * cumulative counts in buckets, evenly within one.
 * @param {number} share 0 to 1
 * @param {(number | null)[]} bounds where buckets end; the last may be null, for none
 * @returns {Value}
 */
export function percentile(share, bounds) {
  const finite = bounds.filter((bound) => bound !== null).map(Number);
  return (before, after) => {
    const [from, to] = [
      before.counters.request_seconds_buckets,
      after.counters.request_seconds_buckets,
    ];
    if (!Array.isArray(from) || !Array.isArray(to)) return null;
    const counts = to.map((count, index) => count - (from[index] ?? 0));
    const all = counts.at(-1) ?? 0;
    if (all <= 0 || counts.some((count) => count < 0)) return null;
    const wanted = share * all;
    const index = counts.findIndex((count) => count >= wanted);
    if (index >= finite.length) return finite.at(-1) ?? null;
    const [below, start] = index > 0 ? [counts[index - 1], finite[index - 1]] : [0, 0];
    const within = counts[index] - below;
    return start + ((finite[index] - start) * (wanted - below)) / (within || 1);
  };
}

/**
 * A line's values, one a point but the first, which only begins it.
 * @param {Point[]} points
 * @param {Value} value
 * @returns {(number | null)[]}
 */
export function line(points, value) {
  return points.slice(1).map((after, index) => {
    const before = points[index];
    return before.gap || after.gap ? null : value(before, after);
  });
}
