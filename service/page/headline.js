/** Three sentences: is each camera alive, is adapting helping, what did the guard do. */

import { byId, icon, setText } from "./dom.js";
import { clock, compareNames, count, counted, cut, duration, listed, percent, points } from "./format.js";
import { actInWords } from "./happenings.js";

/** @typedef {import("./state.js").Live} Live */
/** @typedef {import("./wire").Row} Row */
/** @typedef {{icon: string, text: string, more: string}} Sentence */

/** A mean gain from which on something is said of it, where no camera's is sure. */
const SEEMS = 0.02;
/** A camera of which this long nothing was heard is not said to be alive, whatever its habit is. */
const HEARD_SECONDS = 3600;

/**
 * @param {Live} live
 * @param {number | null} lostAt since when the connection is lost: what was true then is told as that
 */
export function showHeadline(live, lostAt) {
  for (const [id, answer] of Object.entries({ alive, helping, guarded })) {
    const { icon: symbol, text, more } = answer(live);
    if (lostAt === null) show(id, { icon: symbol, text, more });
    else show(id, { icon: "info", text: `As of ${clock(lostAt)}: ${text}`, more: "" });
  }
}

/**
 * @param {string} id
 * @param {Sentence} sentence
 */
function show(id, sentence) {
  const item = byId(id, HTMLElement);
  if (item.dataset.icon !== sentence.icon) {
    item.dataset.icon = sentence.icon;
    item.querySelector(".icon")?.replaceWith(icon(sentence.icon));
  }
  const [text, more] = item.querySelectorAll("strong, small");
  setText(text, sentence.text);
  setText(more, sentence.more);
}

/**
 * @param {Live} live
 * @returns {Sentence}
 */
export function alive(live) {
  const rows = [...live.rows.values()];
  const all = rows.length + live.leftOut;
  if (!all) {
    return {
      icon: "info",
      text: "No camera has sent an image yet.",
      more: "POST one to predict?stream=NAME, or drop one below.",
    };
  }
  const silent = rows.filter(({ silent_since }) => silent_since !== null);
  const heard = rows.filter(({ silent_since }) => silent_since === null);
  const failing = heard.filter(({ suspect }) => suspect !== null);
  const away = heard.filter(
    ({ suspect, last_image }) =>
      suspect === null && (last_image === null || live.now - last_image > HEARD_SECONDS),
  );
  const lasts = rows.flatMap(({ last_image }) => (last_image === null ? [] : [last_image]));
  const last = lasts.reduce((latest, time) => Math.max(latest, time), -Infinity);
  const more = lasts.length ? `The latest image came ${duration(live.now - last)} ago.` : "";
  const well = all - silent.length - failing.length - away.length;
  if (well === all) {
    const text = all === 1 ? "The one camera is alive." : `All ${count(all)} cameras are alive.`;
    return { icon: "ok", text, more };
  }
  const kind = failing.length === 1 ? ` (${failing[0].suspect})` : "";
  const parts = [
    about(silent, "is silent", "are silent"),
    about(failing, `sends faulty frames${kind}`, "send faulty frames"),
    about(away, "has sent nothing of late", "have sent nothing of late"),
  ].filter(Boolean);
  const text = `${count(well)} of ${counted(all, "camera")} ${well === 1 ? "is" : "are"} well: ${parts.join("; ")}.`;
  return { icon: silent.length || failing.length ? "warn" : "info", text, more };
}

/**
 * @param {Row[]} rows
 * @param {string} does what one of them does
 * @param {string} all what several do
 */
function about(rows, does, all) {
  return rows.length ? `${listed(names(rows))} ${rows.length === 1 ? does : all}` : "";
}

/**
 * @param {Live} live
 * @returns {Sentence}
 */
export function helping(live) {
  const { state, counters, gauges } = live;
  const [labelled, correct] = [Number(counters.labelled ?? 0), Number(counters.correct ?? 0)];
  const truth = labelled
    ? ` ${percent(correct / labelled)} of ${count(labelled)} labelled answers were right.`
    : "";
  const rows = [...live.rows.values()];
  if (rows.length && rows.every(({ mode }) => mode === "source" || mode === null)) {
    const text = `Nothing adapts: ${state?.method ?? "the method"} answers as it was trained.`;
    return { icon: "source", text, more: truth.trim() };
  }
  const judged = rows.filter(({ estimate }) => estimate !== null);
  if (!judged.length) {
    const why =
      state?.guard === "off"
        ? "With the guard off nothing is compared."
        : "No image was compared with the frozen model yet.";
    const text = "Whether adapting helps cannot be told yet.";
    return { icon: "info", text, more: why + truth };
  }
  const free = judged.filter(({ mode }) => mode !== "held");
  const held = judged.length - free.length;
  const without = held ? ` ${counted(held, "held camera")} not counted.` : "";
  const [adapted, source] = [gauges.estimated_adapted, gauges.estimated_source];
  if (!free.length || typeof adapted !== "number" || typeof source !== "number") {
    const text = "Adapting does harm wherever it was compared.";
    return { icon: "bad", text, more: (without + truth).trim() };
  }
  const better = free.filter(({ estimate }) => estimate && estimate.gain.low > 0);
  const worse = free.filter(({ estimate }) => estimate && estimate.gain.high < 0);
  const gain = adapted - source;
  const sure = `surely better at ${count(better.length)} of ${counted(free.length, "camera")}, worse at ${count(worse.length)}`;
  const more = `Estimated, ${percent(adapted, 0)} right, frozen ${percent(source, 0)}: ${points(gain)} points; ${sure}.${truth}${without}`;
  if (2 * worse.length > free.length) return { icon: "bad", text: "Adapting does harm.", more };
  if (worse.length) {
    const helps = better.length ? "helps, but does" : "does";
    return { icon: "warn", text: `Adapting ${helps} harm at ${listed(names(worse))}.`, more };
  }
  if (better.length) return { icon: "ok", text: "Adapting helps.", more };
  // Intervals of single cameras are wide: what all of them point to is told as no more than that.
  if (gain >= SEEMS) return { icon: "adapting", text: "Adapting seems to help, not yet surely.", more };
  if (gain <= -SEEMS) return { icon: "warn", text: "Adapting seems to do harm, not yet surely.", more };
  return { icon: "info", text: "Adapting makes no difference that is seen.", more };
}

/**
 * @param {Live} live
 * @returns {Sentence}
 */
export function guarded(live) {
  const { state } = live;
  if (state?.guard === "off") {
    return {
      icon: "info",
      text: "The guard is off.",
      more: "Nothing keeps adapting from doing harm; --guard on does.",
    };
  }
  const rows = [...live.rows.values()];
  const held = rows.filter(({ mode }) => mode === "held");
  const doubted = rows.filter((row) => row.mode !== "held" && row.doubted_since !== null);
  // What was done by hand is told of a row, too.
  const acts = rows.flatMap(({ name, guard }) =>
    guard && guard.reason !== "by_hand" ? [{ name, ...guard }] : [],
  );
  const last = acts.reduce(
    (latest, act) => (!latest || act.time > latest.time ? act : latest),
    /** @type {typeof acts[0] | null} */ (null),
  );
  const many = Number(live.counters.guard_actions ?? 0);
  const more = [
    state?.guard === "observe" ? "It only observes." : "",
    many ? `${counted(many, "act")} since the start.` : "",
    last
      ? `${cut(last.name, 24)}, ${duration(live.now - last.time)} ago: ${actInWords(last)}.`
      : "It compares adapted answers with the frozen model's.",
  ].join(" ").trim();
  if (held.length) {
    const text = `The guard holds ${listed(names(held))}: the frozen model answers.`;
    return { icon: "held", text, more };
  }
  if (doubted.length) {
    return { icon: "warn", text: `The guard doubts ${listed(names(doubted))}.`, more };
  }
  const text = many || last ? "The guard holds no camera now." : "The guard had nothing to do.";
  return { icon: "ok", text, more };
}

/** @param {Row[]} rows */
function names(rows) {
  return rows.map(({ name }) => name).sort(compareNames);
}
