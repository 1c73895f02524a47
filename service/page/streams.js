/** The table of cameras: those in trouble on top, one page of rows at a time, however many. */

import { arrange, byId, drawn, element, icon, setAttribute, setText } from "./dom.js";
import { UNKNOWN, compareNames, count, counted, cut, duration, number, percent, points } from "./format.js";

/** @typedef {import("./state.js").Live} Live */
/** @typedef {import("./wire").Row} Row */
/** @typedef {import("./wire").Mode} Mode */
/** @typedef {import("./wire").Interval} Interval */

export const ROWS_A_PAGE = 50;
/** Rows stay where they are for so long after somebody pointed at one or moved through them. */
const USED_SECONDS = 10;

/** @type {Record<Mode, {icon: string, word: string, title: string}>} */
const MODES = {
  source: { icon: "source", word: "source", title: "nothing adapts; the model answers as trained" },
  adapting: { icon: "adapting", word: "adapting", title: "answers, and learns from the images" },
  settled: { icon: "ok", word: "settled", title: "has adapted, and learns no more for now" },
  held: { icon: "held", word: "held", title: "the frozen model answers, since that is safer" },
  rolled_back: { icon: "undo", word: "rolled back", title: "brought back to a good state of late" },
};

const SAVED = { icon: "info", word: "saved", title: "not in memory" };

/**
 * How images are answered, in words with an icon.
 * @param {Mode | null} mode null: that is not known of a stream that is not in memory
 */
export function modeOf(mode) {
  return mode === null ? SAVED : MODES[mode] ?? { icon: "info", word: cut(mode, 24), title: "" };
}

/** @type {Record<string, (a: Row, b: Row, live: Live) => number>} */
const ORDERS = {
  trouble: (a, b) => b.trouble - a.trouble,
  name: () => 0,
  latest: (a, b) => (b.last_image ?? 0) - (a.last_image ?? 0),
  rate: (a, b, live) => (live.rate(b.name) ?? 0) - (live.rate(a.name) ?? 0),
  gain: (a, b) => (a.estimate?.gain.accuracy ?? 9) - (b.estimate?.gain.accuracy ?? 9),
};

/**
 * What is wrong with a stream, in few words; an empty text where nothing is.
 * @param {Row} row
 * @param {number} now
 */
function troubleOf(row, now) {
  if (row.silent_since !== null) return `silent for ${duration(now - row.silent_since)}`;
  if (row.suspect) return `faulty frames: ${row.suspect}`;
  if (row.held_since !== null) return `for ${duration(now - row.held_since)}`;
  if (row.doubted_since !== null) return `doubted for ${duration(now - row.doubted_since)}`;
  if (row.estimate && row.estimate.gain.high < 0) return "estimated below frozen";
  return "";
}

export class Streams {
  /**
   * @param {Live} live
   * @param {(act: "reset" | "rollback", name: string) => void} act
   */
  constructor(live, act) {
    this.live = live;
    this.body = byId("streams", HTMLTableSectionElement);
    this.search = byId("search", HTMLInputElement);
    this.sort = byId("sort", HTMLSelectElement);
    this.page = 0;
    /** @type {string[]} Names of all that were found, in order. */
    this.order = [];
    /** @type {Map<string, RowView>} Those on the page. */
    this.views = new Map();
    this.usedAt = -Infinity;
    for (const kind of ["pointermove", "keydown", "focusin"]) {
      this.body.addEventListener(kind, () => (this.usedAt = performance.now()));
    }
    this.search.addEventListener("input", () => this.turn(-this.page));
    this.sort.addEventListener("change", () => this.turn(-this.page));
    byId("before", HTMLButtonElement).addEventListener("click", () => this.turn(-1));
    byId("after", HTMLButtonElement).addEventListener("click", () => this.turn(1));
    this.body.addEventListener("click", ({ target }) => {
      const button = target instanceof Element ? target.closest("button") : null;
      const name = button?.closest("tr")?.dataset.name;
      if (button && name) act(button.value === "reset" ? "reset" : "rollback", name);
    });
  }

  /** @param {number} pages */
  turn(pages) {
    this.page += pages;
    this.arrange();
    this.show();
  }

  /** Not as long as a pointer rests or the focus stays: nobody may be there any more. */
  isUsed() {
    return performance.now() - this.usedAt < 1000 * USED_SECONDS;
  }

  arrange() {
    const wanted = this.search.value.trim().toLowerCase();
    const compare = ORDERS[this.sort.value] ?? ORDERS.trouble;
    const { now } = this.live;
    const found = [...this.live.rows.values()].filter((row) => {
      if (!wanted) return true;
      const text = `${row.name} ${modeOf(row.mode).word} ${troubleOf(row, now)}`;
      return text.toLowerCase().includes(wanted);
    });
    found.sort((a, b) => compare(a, b, this.live) || compareNames(a.name, b.name));
    this.order = found.map(({ name }) => name);
  }

  /** Bring the page of rows up to date. */
  update() {
    const before = this.order;
    this.arrange();
    if (this.isUsed()) {
      const found = new Set(this.order);
      const kept = new Set(before.filter((name) => found.has(name)));
      this.order = [...kept, ...this.order.filter((name) => !kept.has(name))];
    }
    this.show();
  }

  show() {
    const pages = Math.max(1, Math.ceil(this.order.length / ROWS_A_PAGE));
    this.page = Math.min(Math.max(0, this.page), pages - 1);
    const first = this.page * ROWS_A_PAGE;
    const names = this.order.slice(first, first + ROWS_A_PAGE);
    const before = this.views;
    this.views = new Map(names.map((name) => [name, before.get(name) ?? new RowView(name)]));
    for (const [name, view] of this.views) {
      const row = this.live.rows.get(name);
      if (row) view.show(row, this.live);
    }
    const focused = document.activeElement;
    arrange(this.body, [...this.views.values()].map(({ line }) => line));
    if (focused instanceof HTMLElement && focused !== document.activeElement) {
      const place = focused.isConnected ? focused : byId("cameras", HTMLElement);
      place.focus({ preventScroll: true });
    }
    this.tell(first, names.length, pages);
  }

  /**
   * @param {number} first
   * @param {number} many
   * @param {number} pages
   */
  tell(first, many, pages) {
    const all = this.live.rows.size;
    const found = this.order.length;
    const left = this.live.leftOut ? `; ${counted(this.live.leftOut, "more camera")} not shown` : "";
    const which =
      found === many ? counted(found, "camera") : `${count(first + 1)} to ${count(first + many)} of ${count(found)}`;
    const within = found === all ? "" : ` found among ${count(all)}`;
    setText(byId("shown", HTMLElement), which + within + left);
    byId("before", HTMLButtonElement).disabled = this.page === 0;
    byId("after", HTMLButtonElement).disabled = this.page >= pages - 1;
    byId("pages", HTMLElement).hidden = pages === 1;
    byId("no-streams", HTMLElement).hidden = found > 0;
    setText(
      byId("no-streams", HTMLElement),
      all ? "No camera is called so, nor is in that state." : "No camera has sent an image yet.",
    );
  }
}

const WIDTH = 88;
const HEIGHT = 20;

/** One camera's row: its cells are made once, and their texts changed. */
class RowView {
  /** @param {string} name */
  constructor(name) {
    this.state = element("span", { class: "state" });
    this.trouble = element("small");
    this.last = cell("Last image");
    this.rate = cell("Images/s");
    this.spark = drawn("polyline");
    this.images = cell("Images");
    this.suspects = cell("Suspect");
    this.adapted = cell("Adapted");
    this.frozen = cell("Frozen");
    this.gain = cell("Gain");
    this.truth = cell("By labels");
    this.versus = drawn("svg", {
      class: "versus",
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
      "aria-hidden": "true",
    });
    const spark = drawn(
      "svg",
      { class: "spark", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, "aria-hidden": "true" },
      this.spark,
    );
    this.line = element(
      "tr",
      { role: "row" },
      element("th", { scope: "row", role: "rowheader", title: name }, cut(name, 28)),
      element("td", { role: "cell", class: "state-cell" }, this.state, this.trouble),
      this.last,
      this.rate,
      element("td", { role: "cell", class: "drawing" }, spark),
      this.images,
      this.suspects,
      element("td", { role: "cell", class: "drawing" }, this.versus),
      this.adapted,
      this.frozen,
      this.gain,
      this.truth,
      element(
        "td",
        { role: "cell", class: "actions" },
        button("rollback", "undo", "Roll back", name),
        button("reset", "restart", "Reset", name),
      ),
    );
    this.line.dataset.name = name;
  }

  /**
   * @param {Row} row
   * @param {Live} live
   */
  show(row, live) {
    this.showState(row, live.now);
    setText(this.last, row.last_image === null ? UNKNOWN : duration(live.now - row.last_image));
    setText(this.rate, number(live.rate(row.name)));
    setText(this.images, row.images === null ? UNKNOWN : count(row.images));
    this.showSuspects(row);
    this.showAccuracy(row);
    setAttribute(this.spark, "points", sparkline(live.rates(row.name)));
  }

  /**
   * @param {Row} row
   * @param {number} now
   */
  showState(row, now) {
    const mode = modeOf(row.mode);
    if (this.state.dataset.mode !== mode.word) {
      this.state.dataset.mode = mode.word;
      this.state.title = mode.title;
      this.state.replaceChildren(icon(mode.icon), mode.word);
    }
    const trouble = troubleOf(row, now);
    setText(this.trouble, cut(trouble, 40));
    setAttribute(this.trouble, "title", row.why ?? trouble);
    setAttribute(this.line, "data-trouble", String(row.trouble));
  }

  /** @param {Row} row */
  showSuspects(row) {
    const kinds = Object.entries(row.suspects);
    const all = kinds.reduce((sum, [, many]) => sum + many, 0);
    setText(this.suspects, count(all));
    setAttribute(this.suspects, "title", kinds.map(([kind, many]) => `${kind}: ${many}`).join(", "));
  }

  /** @param {Row} row */
  showAccuracy({ estimate, truth }) {
    showInterval(this.adapted, estimate?.adapted);
    showInterval(this.frozen, estimate?.source);
    const gain = estimate?.gain;
    showTwo(
      this.gain,
      gain ? points(gain.accuracy) : UNKNOWN,
      gain ? `${points(gain.low)} to ${points(gain.high)}` : "",
    );
    const sure = gain ? (gain.low > 0 ? "better" : gain.high < 0 ? "worse" : "unsure") : "";
    setAttribute(this.gain, "data-sure", sure);
    const labelled = truth?.labelled ?? 0;
    showTwo(
      this.truth,
      labelled ? percent((truth?.correct ?? 0) / labelled) : UNKNOWN,
      labelled ? `of ${count(labelled)}` : "",
    );
    const key = estimate ? JSON.stringify([estimate.adapted, estimate.source]) : "";
    if (this.versus.dataset.key === key) return;
    this.versus.dataset.key = key;
    this.versus.replaceChildren(
      ...(estimate ? [scale(), ...whisker(estimate.source, 14, true), ...whisker(estimate.adapted, 6, false)] : []),
    );
  }
}

/** @param {string} label said before it where the row is a card */
function cell(label) {
  return element("td", { role: "cell", class: "number", "data-label": label });
}

/**
 * @param {string} value
 * @param {string} symbol
 * @param {string} word
 * @param {string} name
 */
function button(value, symbol, word, name) {
  const label = `${word} ${cut(name, 64)}`;
  return element("button", { type: "button", value, "aria-label": label, title: label }, icon(symbol), word);
}

/**
 * @param {HTMLElement} place
 * @param {Interval | undefined} interval
 */
function showInterval(place, interval) {
  showTwo(
    place,
    interval ? percent(interval.accuracy) : UNKNOWN,
    interval ? `${(100 * interval.low).toFixed(0)} to ${(100 * interval.high).toFixed(0)}` : "",
  );
}

/**
 * A number, and in small what belongs to it.
 * @param {HTMLElement} place
 * @param {string} text
 * @param {string} more
 */
function showTwo(place, text, more) {
  if (!place.firstChild) place.append(document.createTextNode(""), element("small"));
  const [first, second] = place.childNodes;
  setText(first, text);
  setText(second, more);
}

/** @param {number[]} rates */
function sparkline(rates) {
  const most = Math.max(...rates, 0.001);
  const step = WIDTH / 60;
  const start = WIDTH - step * (rates.length - 1);
  return rates
    .map((each, index) => {
      const x = (start + step * index).toFixed(1);
      return `${x},${(HEIGHT - 2 - ((HEIGHT - 4) * each) / most).toFixed(1)}`;
    })
    .join(" ");
}

function scale() {
  return drawn("path", { class: "scale", d: `M.5 2v16M${WIDTH / 2} 2v16M${WIDTH - 0.5} 2v16` });
}

/**
 * An estimate with its interval, from none at the left to all at the right.
 * @param {Interval} interval
 * @param {number} y
 * @param {boolean} hollow
 */
function whisker({ accuracy, low, high }, y, hollow) {
  const x = (/** @type {number} */ share) => 4 + (WIDTH - 8) * Math.min(1, Math.max(0, share));
  const kind = hollow ? "frozen" : "adapted";
  return [
    drawn("path", { class: `range ${kind}`, d: `M${x(low)} ${y}H${x(high)}` }),
    drawn("circle", { class: kind, cx: x(accuracy), cy: y, r: 3 }),
  ];
}
