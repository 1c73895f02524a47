/** Kinds of what happened: what is marked on the curves, and what comes all the time. */

/** @typedef {import("./wire").Happening} Happening */

/**
 * Kinds of marks. Letters tell them apart, not colours.
 * @typedef {"guard" | "reset" | "change" | "restart"} Kind
 * @type {Record<Kind, {letter: string, title: string, icon: string}>}
 */
export const KINDS = {
  guard: { letter: "G", title: "guard", icon: "guard" },
  reset: { letter: "R", title: "reset or rollback", icon: "undo" },
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

/** As in service/live/frames.py: they come with every camera that comes and goes. */
const ROUTINE = ["connection_closed", "evicted", "restored", "skipped"];

/** @param {Happening} happening */
export function isRoutine({ event }) {
  return ROUTINE.includes(event);
}
