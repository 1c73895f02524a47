/** Three sentences: is each camera alive, is adapting helping, what did the guard do. */

import { byId, icon, setText } from "./dom.js";
import { compareNames, count, counted, cut, duration, listed, percent, points } from "./format.js";
import { actInWords } from "./happenings.js";

/** @typedef {import("./state.js").Live} Live */
/** @typedef {import("./wire").Row} Row */
/** @typedef {{icon: string, text: string, more: string}} Sentence */

/** A mean gain from which on something is said of it, where no camera's is sure. */
const SEEMS = 0.02;

/** @param {Live} live */
export function showHeadline(live) {
  show("alive", alive(live));
  show("helping", helping(live));
  show("guarded", guarded(live));
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
function alive(live) {
  const rows = [...live.rows.values()];
  const all = Number(live.gauges.streams ?? rows.length) || rows.length;
  if (!all) {
    return {
      icon: "info",
      text: "No camera has sent an image yet.",
      more: "POST one to predict?stream=NAME, or drop one below.",
    };
  }
  const silent = rows.filter(({ silent_since }) => silent_since !== null);
  const failing = rows.filter((row) => row.suspect && row.silent_since === null);
  const lasts = rows.flatMap(({ last_image }) => (last_image === null ? [] : [last_image]));
  const last = lasts.reduce((latest, time) => Math.max(latest, time), -Infinity);
  const more = lasts.length ? `The latest image came ${duration(live.now - last)} ago.` : "";
  if (!silent.length && !failing.length) {
    const text = all === 1 ? "The one camera is alive." : `All ${count(all)} cameras are alive.`;
    return { icon: "ok", text, more };
  }
  const parts = [];
  if (silent.length) parts.push(`${listed(names(silent))} ${silent.length > 1 ? "are" : "is"} silent`);
  if (failing.length) {
    const kind = failing.length === 1 ? ` (${failing[0].suspect})` : "";
    const sends = failing.length > 1 ? "send" : "sends";
    parts.push(`${listed(names(failing))} ${sends} faulty frames${kind}`);
  }
  const well = all - silent.length - failing.length;
  const text = `${count(well)} of ${counted(all, "camera")} ${well === 1 ? "is" : "are"} well: ${parts.join("; ")}.`;
  return { icon: "warn", text, more };
}

/**
 * @param {Live} live
 * @returns {Sentence}
 */
function helping(live) {
  const { state, counters } = live;
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
  const free = judged.flatMap(({ mode, estimate }) => (mode !== "held" && estimate ? [estimate] : []));
  const held = judged.length - free.length;
  const without = held ? `${counted(held, "held camera")} not counted.` : "";
  if (!free.length) {
    const text = "Adapting does harm wherever it was compared.";
    return { icon: "bad", text, more: without + truth };
  }
  const better = free.filter(({ gain }) => gain.low > 0).length;
  const worse = free.filter(({ gain }) => gain.high < 0).length;
  const adapted = mean(free.map((each) => each.adapted.accuracy));
  const source = mean(free.map((each) => each.source.accuracy));
  const gain = adapted - source;
  const sure = `surely better at ${count(better)} of ${counted(free.length, "camera")}, worse at ${count(worse)}`;
  const more = `Estimated, ${percent(adapted, 0)} right, frozen ${percent(source, 0)}: ${points(gain)} points; ${sure}.${truth} ${without}`;
  if (worse && worse >= better) return { icon: "bad", text: "Adapting does harm.", more };
  if (worse) return { icon: "warn", text: "Adapting helps, but not everywhere.", more };
  if (better) return { icon: "ok", text: "Adapting helps.", more };
  // Intervals of single cameras are wide: what all of them point to is told as no more than that.
  if (gain >= SEEMS) return { icon: "adapting", text: "Adapting seems to help, not yet surely.", more };
  if (gain <= -SEEMS) return { icon: "warn", text: "Adapting seems to do harm, not yet surely.", more };
  return { icon: "info", text: "Adapting makes no difference that is seen.", more };
}

/** @param {number[]} values */
function mean(values) {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

/**
 * @param {Live} live
 * @returns {Sentence}
 */
function guarded(live) {
  if (live.state?.guard === "off") {
    return {
      icon: "info",
      text: "The guard is off.",
      more: "Nothing keeps adapting from doing harm; --guard on does.",
    };
  }
  const rows = [...live.rows.values()];
  const held = rows.filter(({ mode }) => mode === "held");
  const doubted = rows.filter((row) => row.mode !== "held" && row.doubted_since !== null);
  const acts = rows.flatMap(({ name, guard }) => (guard ? [{ name, ...guard }] : []));
  const last = acts.reduce(
    (latest, act) => (!latest || act.time > latest.time ? act : latest),
    /** @type {typeof acts[0] | null} */ (null),
  );
  const more = last
    ? `Last, ${duration(live.now - last.time)} ago, ${cut(last.name, 24)} ${actInWords(last)}.`
    : "It compares adapted answers with the frozen model's.";
  const observes = live.state?.guard === "observe" ? " It only observes." : "";
  if (held.length) {
    const they = held.length > 1 ? "are" : "is";
    const text = `The guard holds ${listed(names(held))}: the frozen model answers.`;
    return { icon: "held", text, more: `${counted(held.length, "camera")} ${they} held. ${more}` };
  }
  if (doubted.length) {
    const text = `The guard doubts ${listed(names(doubted))}.`;
    return { icon: "warn", text, more: more + observes };
  }
  if (last) return { icon: "ok", text: "The guard holds no camera now.", more: more + observes };
  return { icon: "ok", text: "The guard had nothing to do.", more: more + observes };
}

/** @param {Row[]} rows */
function names(rows) {
  return rows.map(({ name }) => name).sort(compareNames);
}
