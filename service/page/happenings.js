/** What happened, in words, and which of it is marked on the curves. */

import { byId, element, icon, setText } from "./dom.js";
import { counted, cut, moment } from "./format.js";

/** @typedef {import("./wire").Happening} Happening */
/** @typedef {import("./wire").Act} Act */
/** @typedef {import("./state.js").Live} Live */

/**
 * Kinds of marks. Letters tell them apart, not colours.
 * @typedef {"guard" | "reset" | "change" | "restart"} Kind
 * @type {Record<Kind, {letter: string, title: string, icon: string}>}
 */
export const KINDS = {
  guard: { letter: "G", title: "guard", icon: "guard" },
  reset: { letter: "R", title: "reset or rollback by hand", icon: "undo" },
  change: { letter: "C", title: "change of model or load", icon: "change" },
  restart: { letter: "S", title: "start", icon: "restart" },
};

/** @type {Record<string, Kind>} */
const MARKED = {
  guard: "guard",
  reset: "reset",
  rollback: "reset",
  model_loaded: "change",
  second_view_off: "change",
  shedding: "change",
  shedding_less: "change",
  shedding_over: "change",
  started: "restart",
};

/**
 * @param {Happening} happening
 * @returns {Kind | null} null: it is told, and not marked
 */
export function kindOf({ event }) {
  return MARKED[event] ?? null;
}

/** @type {Record<string, string>} */
const REASONS = {
  suspicion: "harm is suspected",
  harm: "adapting does harm",
  gain: "adapting helps again",
  no_gain: "adapting does not help",
  by_hand: "by hand",
  request: "by hand",
  failure: "the method could not go on",
};

/** @type {Record<string, string>} */
const ACTS = {
  hold: "has the frozen model answer",
  release: "has the adapted model answer again",
  roll_back: "went back to the last good state",
  reset: "went back to the source",
};

/**
 * What was done with a stream, as a sentence without its subject.
 * @param {Pick<Act, "action" | "reason" | "observed"> | Happening} act
 */
export function actInWords({ action, reason, observed }) {
  const done = ACTS[String(action)] ?? String(action);
  const why = REASONS[String(reason)] ?? String(reason);
  return `${observed ? "(observed only) " : ""}${done}: ${why}`;
}

/** @type {Record<string, (happening: Happening) => string>} */
const WORDS = {
  started: ({ model }) => `The server started${model ? ` with ${model}` : ""}.`,
  stopped: ({ reason }) => `The server stopped: ${reason}.`,
  draining: () => "The server is shutting down.",
  guard: (happening) => `The guard ${actInWords(happening)}.`,
  reset: ({ reason }) => `Reset to the source: ${REASONS[String(reason)] ?? reason}.`,
  rollback: ({ version }) => `Rolled back by hand to version ${version}.`,
  suspect: ({ kind }) => `Faulty frames: ${kind}.`,
  suspect_over: ({ kind }) => `Frames are ordinary again, after ${kind}.`,
  model_loaded: ({ digest, former_digest }) =>
    `Other weights answer: ${digest}, after ${former_digest}.`,
  model_unchanged: () => "The model was read anew; its weights are the same.",
  model_refused: ({ reason }) => `The model was not exchanged: ${reason}`,
  second_view_off: () => "Mirror images mean something else here, and are left out.",
  shedding: ({ what }) =>
    what === "second_view"
      ? "The queue stands: images go without the second view, too."
      : "The queue stands: images are answered and not learned from.",
  shedding_less: () => "The queue is shorter: the second view is back.",
  shedding_over: () => "The queue is short: all images are learned from again.",
  envelope: ({ clause, verdict }) =>
    `A step would have gone beyond the envelope, and was ${verdict}: ${String(clause).replaceAll("_", " ")}.`,
  skipped: ({ reason }) => `Not learned from: ${reason}.`,
  adaptation_failed: ({ reason }) => `Adapting failed: ${reason}`,
  not_saved: ({ reason }) => `Could not be saved: ${reason}`,
  not_saving: ({ reason }) => `No stream will be saved: ${reason}`,
  evicted: ({ reason }) => `Left memory: ${reason}.`,
  restored: () => "Came back from its saved state.",
  rejected: ({ reason }) => `Its saved state was set aside: ${reason}`,
  saved: ({ saved }) => `Streams were saved: ${saved}.`,
};

const TELLS_NOTHING = ["time", "event", "stream", "count", "latest", "trace_id", "span_id"];

/** @param {Happening} happening */
export function inWords(happening) {
  const words = WORDS[happening.event];
  if (words) return words(happening);
  const rest = Object.entries(happening).filter(([name]) => !TELLS_NOTHING.includes(name));
  const fields = rest.map(([name, value]) => `${name} ${JSON.stringify(value)}`).join(", ");
  return happening.event.replaceAll("_", " ") + (fields ? `: ${fields}` : "");
}

const SHOWN = 30;

/**
 * The latest happenings as a table, the newest on top.
 * @param {Live} live
 */
export function showHappenings(live) {
  const body = byId("happenings", HTMLTableSectionElement);
  const latest = live.events.slice(-SHOWN).reverse();
  setText(
    byId("happenings-count", HTMLElement),
    latest.length ? `The latest ${counted(latest.length, "event")}.` : "Nothing has happened yet.",
  );
  const lines = latest.map((happening) => {
    const kind = kindOf(happening);
    const said = inWords(happening);
    const times = Number(happening.count ?? 1);
    const words = cut(said, 200) + (times > 1 ? ` (${times} times)` : "");
    const { stream = "" } = happening;
    return element(
      "tr",
      {},
      element("td", { class: "time" }, moment(happening.time, live.now)),
      element(
        "td",
        { class: "mark" },
        ...(kind ? [icon(KINDS[kind].icon), KINDS[kind].letter] : [""]),
      ),
      element("td", { class: "name", title: stream }, cut(stream, 24)),
      element("td", { title: said }, words),
    );
  });
  body.replaceChildren(...lines);
}
