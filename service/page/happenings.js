/** What happened, in words and as a table. */

import { Lines, byId, element, icon, setText } from "./dom.js";
import { counted, cut, duration, moment } from "./format.js";
import { KINDS, isRoutine, kindOf } from "./kinds.js";

/** @typedef {import("./wire").Happening} Happening */
/** @typedef {import("./wire").Act} Act */
/** @typedef {import("./state.js").Live} Live */

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
  silent: ({ seconds, streams }) =>
    streams
      ? `${counted(Number(streams), "more camera")} fell silent.`
      : `Silent: it has sent nothing for ${duration(Number(seconds))}.`,
  back: ({ seconds, streams }) =>
    streams
      ? `${counted(Number(streams), "more camera")} sent again.`
      : `It sends again, after ${duration(Number(seconds))}.`,
  started: ({ model }) => `The server started${model ? ` with ${model}` : ""}.`,
  stopped: ({ reason }) => `The server stopped: ${reason}.`,
  draining: () => "The server is shutting down.",
  guard: (happening) => `The guard ${actInWords(happening)}.`,
  reset: ({ reason, known }) =>
    known === false ? "A reset was asked for: nothing was known of it." : `Reset to the source: ${REASONS[String(reason)] ?? reason}.`,
  rollback: ({ version }) => `Rolled back by hand to version ${version}.`,
  suspect: ({ kind }) => `Faulty frames: ${kind}.`,
  suspect_over: ({ kind }) => `Frames are ordinary again, after ${kind}.`,
  model_loaded: ({ digest, former_digest }) =>
    `Other weights answer: ${digest}, after ${former_digest}.`,
  model_unchanged: () => "The model was read anew; its weights are the same.",
  reload_refused: ({ reason }) => `The model was not read anew: ${reason}.`,
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
  changes_not_written: ({ reason }) => `The log of changes could not be written: ${reason}`,
  not_saving: ({ reason }) => `No stream will be saved: ${reason}`,
  handed_over: ({ saved }) =>
    saved === false
      ? "Another replica has it now; what it had learned since it was last saved is lost."
      : "Another replica has it now.",
  lease_lost: () => "Another replica has it; what this one had learned of it is dropped.",
  evicted: ({ reason }) => `Left memory: ${reason}.`,
  restored: () => "Came back from its saved state.",
  rejected: ({ reason }) => `Its saved state was set aside: ${reason}`,
  set_aside: ({ reason }) => `What lay in the place of its saved state was set aside: ${reason}`,
  saved: ({ saved }) => `Streams were saved: ${saved}.`,
  saved_unfit: ({ streams }) => `Saved streams that do not fit what is served: ${streams}.`,
  not_looked_at: ({ reason }) => `Its saved state could not be looked at: ${reason}`,
  not_removed: ({ reason }) => `Its saved state could not be removed: ${reason}`,
  ids_not_saved: ({ reason }) => `Ids of answers could not be saved: ${reason}`,
  connection_closed: ({ reason }) => `A connection was ended: ${reason}.`,
  lost: ({ count: many }) => `${counted(Number(many), "event")} came too fast to be told.`,
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

export class Happenings {
  /** @param {Live} live */
  constructor(live) {
    this.live = live;
    this.lines = new Lines(byId("happenings", HTMLTableSectionElement));
    this.all = byId("happenings-all", HTMLInputElement);
    this.all.addEventListener("change", () => this.show());
  }

  /** Show the latest happenings, the newest on top. */
  show() {
    const { events, now } = this.live;
    const wanted = this.all.checked ? events : events.filter((each) => !isRoutine(each));
    const latest = wanted.slice(-SHOWN).reverse();
    const which = latest.length < wanted.length ? `the latest ${latest.length} of ` : "";
    setText(
      byId("happenings-count", HTMLElement),
      wanted.length ? which + counted(wanted.length, "event") : "Nothing has happened yet.",
    );
    this.lines.show(
      latest.map((happening) => {
        const time = moment(happening.time, now);
        const said = inWords(happening);
        const key = [time, happening.time, happening.event, happening.stream, said].join(" ");
        return { key, make: () => line(happening, time, said) };
      }),
    );
  }
}

/**
 * @param {Happening} happening
 * @param {string} time
 * @param {string} said
 */
function line(happening, time, said) {
  const kind = kindOf(happening);
  const { stream = "" } = happening;
  return element(
    "tr",
    {},
    element("td", { class: "time" }, time),
    element("td", { class: "mark" }, ...(kind ? [icon(KINDS[kind].icon), KINDS[kind].letter] : [""])),
    element("td", { class: "name", title: stream }, cut(stream, 24)),
    element("td", { title: said }, cut(said, 200)),
  );
}
