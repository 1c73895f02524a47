/** The page: connects what the server tells with what is shown. */

import { confirm, told } from "./control.js";
import { Curves } from "./curves.js";
import { announce, byId, icon, setText } from "./dom.js";
import { Feed } from "./events.js";
import { clock, cut } from "./format.js";
import { Happenings, inWords } from "./happenings.js";
import { showHeadline } from "./headline.js";
import { kindOf } from "./kinds.js";
import { Trial } from "./predict.js";
import { SettingsView } from "./settings.js";
import { Live } from "./state.js";
import { Streams } from "./streams.js";
import { NoToken, expectToAsk, request } from "./tokens.js";

/** @typedef {import("./wire").State} State */
/** @typedef {import("./wire").Happening} Happening */

/** Of what the guard does there is a sentence now and then; a flood of them would be heard by nobody. */
const SENTENCES_APART = 10;

const live = new Live();
const streams = new Streams(live, confirm);
const happenings = new Happenings(live);
new Trial(live);
new SettingsView();

/** @type {Curves | null} Made once the server has said what it counts. */
let curves = null;
/** @type {number | null} Since when the connection is lost. */
let lostAt = Date.now() / 1000;
/** @type {string | null} Of which page this is: the server's when it was first heard of. */
let loaded = null;
/** @type {Happening[]} What the guard did that was not said yet. */
let unsaid = [];
/** @type {ReturnType<typeof setTimeout> | undefined} While nothing is said of it. */
let pause;

/** Bring all that is shown up to date. */
function show() {
  if (document.hidden || !live.state) return;
  showHeadline(live, lostAt);
  streams.update();
  curves?.tell();
}

function showPoints() {
  if (document.hidden) return;
  curves?.draw();
  happenings.show();
}

/** @param {State} state */
function begin(state) {
  loaded ??= state.page;
  byId("old-page", HTMLElement).hidden = state.page === loaded;
  live.begin(state);
  expectToAsk(state.asks);
  curves ??= new Curves(live);
  setText(byId("model", HTMLElement), cut(state.model.name, 48));
  byId("model", HTMLElement).title = state.model.name;
  const digest = state.model.digest ? `weights ${cut(state.model.digest, 16)}, ` : "";
  const served = `${digest}${state.method}, adapt ${state.adapt}, version ${state.version}`;
  setText(byId("served-by", HTMLElement), served);
  document.body.dataset.live = "";
}

/**
 * Say what a person who hears the page must not miss.
 * @param {Happening[]} events
 */
function announceGuard(events) {
  unsaid.push(...events.filter((each) => kindOf(each) === "guard"));
  const last = unsaid.at(-1);
  if (pause !== undefined || !last) return;
  const many = unsaid.length > 1 ? `${unsaid.length} acts of the guard, the last: ` : "";
  announce(`${many}${cut(last.stream ?? "", 24)}: ${inWords(last)}`);
  unsaid = [];
  pause = setTimeout(() => {
    pause = undefined;
    announceGuard([]);
  }, 1000 * SENTENCES_APART);
}

/**
 * @param {string} state
 * @param {string} symbol
 * @param {string} sentence
 */
function showConnection(state, symbol, sentence) {
  const place = byId("connection", HTMLElement);
  if (place.dataset.state !== state) {
    place.dataset.state = state;
    place.querySelector(".icon")?.replaceWith(icon(symbol));
  }
  setText(byId("connection-said", HTMLElement), sentence);
}

/**
 * Ask for the events; who closes the question for a token is not asked again by itself.
 * @param {AbortSignal} signal
 * @returns {Promise<Response>}
 */
async function open(signal) {
  const again = byId("give-token", HTMLButtonElement);
  for (;;) {
    try {
      return await request("events", { signal }, "read");
    } catch (error) {
      if (!(error instanceof NoToken)) throw error;
      showConnection("lost", "warn", error.message);
      again.hidden = false;
      await new Promise((resolve) => again.addEventListener("click", resolve, { once: true }));
      again.hidden = true;
    }
  }
}

const feed = new Feed(open, {
  connected() {
    if (live.state && lostAt !== null) announce("The connection is back.");
    lostAt = null;
    showConnection("on", "ok", "connected");
  },
  lost(why) {
    if (lostAt === null) announce("The connection is lost.");
    lostAt ??= Date.now() / 1000;
    const since = live.state ? `Connection lost since ${clock(lostAt)}` : "Not connected";
    showConnection("lost", "warn", `${since}. ${why} Trying again.`);
  },
  frame({ event, data }) {
    const { points } = live;
    const last = points.at(-1);
    if (event === "state") {
      begin(JSON.parse(data));
    } else if (event === "tick" && live.state) {
      const tick = JSON.parse(data);
      live.take(tick);
      announceGuard(tick.events);
      if (tick.events.length) showPoints();
    }
    if (live.points.at(-1) !== last) showPoints();
    show();
  },
});

byId("load-page", HTMLButtonElement).addEventListener("click", () => location.reload());
// What the page shows goes on while nothing comes: ages grow.
setInterval(show, 1000);
document.addEventListener("visibilitychange", () => {
  show();
  showPoints();
});
feed.run().catch((error) => showConnection("lost", "warn", told(error)));
