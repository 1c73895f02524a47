/** Server-sent events over fetch, which unlike EventSource can send a token. */

/** @typedef {{event: string, data: string}} Frame */

const FIRST_WAIT = 1;
const LONGEST_WAIT = 15;
/** The server sends at least a comment every 15 s: after so long nobody is there any more. */
const SILENT_SECONDS = 40;
/** A browser opens six connections to a server: a tab that nobody sees keeps none of them longer. */
const HIDDEN_SECONDS = 30;
/** Why the page itself ended a connection. */
const HIDDEN = "hidden";

/**
 * The frames in a body as they come. Comments and `retry` pass unseen.
 * @param {ReadableStream<Uint8Array>} body
 * @param {() => void} heard called whenever anything came
 * @returns {AsyncGenerator<Frame>}
 */
export async function* frames(body, heard) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  // Of a long frame that comes in pieces each is looked at once.
  /** @type {string[]} */
  let pieces = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      heard();
      const text = decoder.decode(value, { stream: true });
      const lines = text.split("\n");
      if (lines.length === 1) {
        pieces.push(text);
        continue;
      }
      const whole = (pieces.join("") + text).split(/\r?\n\r?\n/);
      pieces = [whole.pop() ?? ""];
      for (const block of whole) {
        const frame = parsed(block);
        if (frame) yield frame;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/**
 * @param {string} block the lines of a frame
 * @returns {Frame | null} null: it has no data
 */
function parsed(block) {
  let event = "message";
  const data = [];
  for (const line of block.split(/\r?\n/)) {
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (name === "event") event = value;
    else if (name === "data") data.push(value);
  }
  return data.length ? { event, data: data.join("\n") } : null;
}

/**
 * Reads the frames of an address for as long as the page is open, and connects again.
 */
export class Feed {
  /**
   * @param {(signal: AbortSignal) => Promise<Response>} open asks for the events
   * @param {{
   *   frame: (frame: Frame) => void,
   *   connected: () => void,
   *   lost: (why: string) => void,
   * }} told
   */
  constructor(open, told) {
    this.open = open;
    this.told = told;
    this.wait = FIRST_WAIT;
    this.again = () => {};
    /** @type {AbortController | null} Of the connection, while there is one. */
    this.connected = null;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.hiding = undefined;
    addEventListener("online", () => this.again());
    document.addEventListener("visibilitychange", () => this.beSeen());
  }

  /** End the connection if the tab stays hidden; connect again once it is seen. */
  beSeen() {
    clearTimeout(this.hiding);
    if (document.hidden) {
      this.hiding = setTimeout(() => this.connected?.abort(HIDDEN), 1000 * HIDDEN_SECONDS);
    } else this.again();
  }

  async run() {
    for (;;) {
      const why = await this.read();
      if (why !== HIDDEN) this.told.lost(why);
      await new Promise((resolve) => {
        const wait = why === HIDDEN ? 0 : this.wait;
        const timer = document.hidden ? undefined : setTimeout(resolve, 1000 * wait);
        this.again = () => {
          clearTimeout(timer);
          resolve(undefined);
        };
      });
      this.again = () => {};
      this.wait = Math.min(2 * this.wait, LONGEST_WAIT);
    }
  }

  /** @returns {Promise<string>} why it ended */
  async read() {
    const aborter = new AbortController();
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    let watch;
    const heard = () => {
      clearTimeout(watch);
      watch = setTimeout(() => aborter.abort(), 1000 * SILENT_SECONDS);
    };
    try {
      const answer = await this.open(aborter.signal);
      if (!answer.ok || !answer.body) return await sentence(answer);
      this.connected = aborter;
      this.told.connected();
      this.beSeen();
      heard();
      for await (const frame of frames(answer.body, heard)) {
        if (frame.event === "end") return "The server is shutting down.";
        try {
          this.told.frame(frame);
        } catch (error) {
          reportError(error); // a fault of the page, not of the line
          return "This page could not show what came.";
        }
        this.wait = FIRST_WAIT;
      }
      return "The server ended the connection.";
    } catch (error) {
      if (aborter.signal.reason === HIDDEN) return HIDDEN;
      if (aborter.signal.aborted) return "The server says nothing any more.";
      return error instanceof TypeError ? "The server cannot be reached." : String(error);
    } finally {
      clearTimeout(watch);
      this.connected = null;
      aborter.abort();
    }
  }
}

/**
 * What an answer that is no success says, in words.
 * @param {Response} answer
 */
export async function sentence(answer) {
  try {
    const problem = await answer.json();
    if (typeof problem.detail === "string") return problem.detail;
  } catch {
    // A proxy's own page, say.
  }
  return `The server answered ${answer.status} ${answer.statusText}`.trim() + ".";
}
