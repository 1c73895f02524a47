/** The page: connects what the server tells with what is shown. */

import { confirm, told } from "./control.js";
import { Curves } from "./curves.js";
import { announce, byId, icon, setText } from "./dom.js";
import { Feed } from "./events.js";
import { clock, cut } from "./format.js";
import { inWords, kindOf, showHappenings } from "./happenings.js";
import { showHeadline } from "./headline.js";
import { Trial } from "./predict.js";
import { SettingsView } from "./settings.js";
import { Live } from "./state.js";
import { Streams } from "./streams.js";
import { NoToken, expectToAsk, request } from "./tokens.js";

/** @typedef {import("./wire").State} State */
/** @typedef {import("./wire").Happening} Happening */

const live = new Live();
const streams = new Streams(live, confirm);
new Trial(live);
new SettingsView();

/** @type {Curves | null} Made once the server has said what it counts. */
let curves = null;
/** @type {number | null} Since when the connection is lost. */
let lostAt = Date.now() / 1000;

/** Bring all that is shown up to date. */
function show() {
  if (document.hidden || !live.state) return;
  showHeadline(live);
  streams.update();
  curves?.tell();
}

function showPoints() {
  if (document.hidden) return;
  curves?.draw();
  showHappenings(live);
}

/** @param {State} state */
function begin(state) {
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
 * Say once what a person who hears the page must not miss.
 * @param {Happening[]} happenings
 */
function announceGuard(happenings) {
  const acts = happenings.filter((each) => kindOf(each) === "guard");
  if (acts.length) announce(`${cut(acts[0].stream ?? "", 24)}: ${inWords(acts[0])}`);
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

// What the page shows goes on while nothing comes: ages grow.
setInterval(show, 1000);
document.addEventListener("visibilitychange", () => {
  show();
  showPoints();
});
feed.run().catch((error) => showConnection("lost", "warn", told(error)));
