/** Tokens: asked for where the server does, kept until this tab is closed, sent to it alone. */

import { byId, setText } from "./dom.js";

/** @typedef {"read" | "predict" | "control"} Purpose */

/** @type {Record<Purpose, string>} */
const FOR = {
  read: "This server asks for a token before it shows anything.",
  predict: "This server asks for a token before it answers images.",
  control: "This server asks for a token before a stream is reset or rolled back.",
};

/** @type {Record<Purpose, boolean>} What the server is known to ask a token for. */
const asks = { read: false, predict: false, control: false };

/** @param {{predict: boolean, control: boolean}} told */
export function expectToAsk(told) {
  Object.assign(asks, told);
}

/** The person did not give a token. */
export class NoToken extends Error {}

/**
 * Under which name a token is kept: a proxy may have other services beside this one.
 * @param {Purpose} purpose
 */
function nameOf(purpose) {
  return `token-${purpose} ${new URL(".", document.baseURI).pathname}`;
}

/** @param {Purpose} purpose */
function kept(purpose) {
  try {
    return sessionStorage.getItem(nameOf(purpose));
  } catch {
    return null; // the browser keeps nothing for this page
  }
}

/**
 * @param {Purpose} purpose
 * @param {string} token
 */
function keep(purpose, token) {
  try {
    sessionStorage.setItem(nameOf(purpose), token);
  } catch {
    // It is asked for again, then.
  }
}

/**
 * The tokens to try: this purpose's own, then the others, since one may stand for all.
 * @param {Purpose} purpose
 * @returns {(string | null)[]}
 */
function candidates(purpose) {
  const all = [kept(purpose), kept("control"), kept("predict"), kept("read")];
  const given = [...new Set(all.filter((token) => token !== null))];
  return given.length || asks[purpose] ? given : [null];
}

/**
 * Ask the server for something, with a token where it wants one; the person is asked for it once.
 * @param {string} path relative to the page
 * @param {RequestInit} options
 * @param {Purpose} purpose
 * @returns {Promise<Response>}
 * @throws {NoToken} it is asked for, and the person gave none
 */
export async function request(path, options, purpose) {
  for (const token of candidates(purpose)) {
    const answer = await send(path, options, token);
    if (answer.status !== 401) return answer;
  }
  for (let refused = false; ; refused = true) {
    const token = await asked(FOR[purpose], refused);
    if (token === null) throw new NoToken(FOR[purpose]);
    const answer = await send(path, options, token);
    if (answer.status === 401) continue;
    keep(purpose, token);
    return answer;
  }
}

/**
 * @param {string} path
 * @param {RequestInit} options
 * @param {string | null} token
 */
function send(path, options, token) {
  const headers = new Headers(options.headers);
  if (token !== null) headers.set("Authorization", `Bearer ${token}`);
  const address = new URL(path, document.baseURI);
  return fetch(address, { ...options, headers, cache: "no-store" });
}

/** @type {Promise<unknown>} One question at a time. */
let before = Promise.resolve();

/**
 * @param {string} why
 * @param {boolean} refused the last token was wrong
 * @returns {Promise<string | null>}
 */
function asked(why, refused) {
  const answer = before.then(() => ask(why, refused));
  before = answer;
  return answer;
}

/**
 * @param {string} why
 * @param {boolean} refused
 * @returns {Promise<string | null>}
 */
function ask(why, refused) {
  const dialog = byId("token-dialog", HTMLDialogElement);
  const form = byId("token-form", HTMLFormElement);
  const input = byId("token", HTMLInputElement);
  setText(byId("token-why", HTMLElement), why);
  setText(byId("token-error", HTMLElement), refused ? "That token was refused." : "");
  input.value = "";
  input.setAttribute("aria-invalid", String(refused));
  return new Promise((resolve) => {
    /** @type {string | null} */
    let given = null;
    form.onsubmit = (event) => {
      event.preventDefault();
      const text = input.value.trim();
      // A header has no other characters; such a token cannot be the server's.
      if (!/^[\x21-\x7e]+$/.test(text)) {
        setText(byId("token-error", HTMLElement), "A token is of letters, digits and signs of ASCII.");
        return;
      }
      given = text;
      dialog.close();
    };
    byId("token-cancel", HTMLButtonElement).onclick = () => dialog.close();
    dialog.onclose = () => {
      input.value = "";
      resolve(given);
    };
    dialog.showModal();
    input.focus();
  });
}
