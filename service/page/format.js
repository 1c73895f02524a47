/** Numbers, times and names as people read them. */

export const UNKNOWN = "–";

const whole = new Intl.NumberFormat("en-GB", { maximumFractionDigits: 0 });
const clockFormat = new Intl.DateTimeFormat("en-GB", {
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
});
const dayFormat = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });

/** @param {number} value */
export function count(value) {
  return whole.format(value);
}

/**
 * Three digits that count, and no more than two behind the point.
 * @param {number | null | undefined} value
 */
export function number(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return UNKNOWN;
  const size = Math.abs(value);
  if (size >= 99.95) return whole.format(value);
  if (size >= 9.995) return value.toFixed(1);
  return value.toFixed(2);
}

/**
 * @param {number | null | undefined} share 0 to 1
 * @param {number} [digits]
 */
export function percent(share, digits = 1) {
  if (share === null || share === undefined || !Number.isFinite(share)) return UNKNOWN;
  return `${(100 * share).toFixed(digits)}\u00a0%`; // not to be broken before the sign
}

/**
 * A difference of two shares, in points.
 * @param {number} difference -1 to 1
 */
export function points(difference) {
  const rounded = Math.round(1000 * difference) / 10;
  const sign = rounded > 0 ? "+" : rounded < 0 ? "−" : "±";
  return sign + Math.abs(rounded).toFixed(1);
}

/** @param {number} time seconds since 1970 */
export function clock(time) {
  return clockFormat.format(new Date(1000 * time));
}

/**
 * A clock's time, with the day where that is another than today's.
 * @param {number} time seconds since 1970
 * @param {number} now
 */
export function moment(time, now) {
  const day = dayFormat.format(new Date(1000 * time));
  return day === dayFormat.format(new Date(1000 * now)) ? clock(time) : `${day} ${clock(time)}`;
}

/**
 * How long something took or is ago, in one unit.
 * @param {number} seconds
 */
export function duration(seconds) {
  const past = Math.max(0, seconds);
  if (past < 90) return `${Math.round(past)} s`;
  if (past < 90 * 60) return `${Math.round(past / 60)} min`;
  if (past < 36 * 3600) return `${Math.round(past / 3600)} h`;
  return `${Math.round(past / 86400)} days`;
}

/**
 * The beginning of a text of any length; its whole belongs into a title.
 * @param {string} text
 * @param {number} [most] characters
 */
export function cut(text, most = 40) {
  const characters = Array.from(text.slice(0, 2 * most + 2));
  return characters.length > most ? `${characters.slice(0, most - 1).join("")}…` : text;
}

/**
 * @param {number} many
 * @param {string} one what one of them is called
 */
export function counted(many, one) {
  return `${count(many)} ${one}${many === 1 ? "" : "s"}`;
}

/**
 * The first names, and how many more there are.
 * @param {string[]} names
 * @param {number} [most]
 */
export function listed(names, most = 2) {
  const first = names.slice(0, most).map((name) => cut(name, 24));
  const more = names.length - first.length;
  if (more > 0) return `${first.join(", ")} and ${count(more)} more`;
  return first.length > 1 ? `${first.slice(0, -1).join(", ")} and ${first.at(-1)}` : first.join("");
}

const collator = new Intl.Collator("en", { numeric: true });

/**
 * gate-2 before gate-10.
 * @param {string} a
 * @param {string} b
 */
export function compareNames(a, b) {
  return collator.compare(a, b);
}
