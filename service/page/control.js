/** Reset and roll back a stream: asked again before it is done. */

import { announce, byId, element, setText } from "./dom.js";
import { count, cut } from "./format.js";
import { sentence } from "./events.js";
import { NoToken, request } from "./tokens.js";

/** @typedef {import("./wire").Snapshots} Snapshots */

/** Which question is asked now: what comes late for one before is nobody's any more. */
let question = 0;

/**
 * @param {"reset" | "rollback"} act
 * @param {string} name
 */
export function confirm(act, name) {
  const dialog = byId("act-dialog", HTMLDialogElement);
  const done = byId("act-do", HTMLButtonElement);
  const short = cut(name, 40);
  const isReset = act === "reset";
  question += 1;
  setText(byId("act-title", HTMLElement), isReset ? `Reset ${short}?` : `Roll ${short} back?`);
  setText(
    byId("act-what", HTMLElement),
    isReset
      ? "All that it has learned is thrown away: it answers as the source model again, and learns from there."
      : "What it has learned since is thrown away; it goes on from a good state that the guard has kept.",
  );
  setText(done, isReset ? "Reset" : "Roll back");
  setText(byId("act-error", HTMLElement), "");
  done.disabled = false;
  const versions = byId("act-versions", HTMLElement);
  versions.hidden = isReset;
  const chosen = byId("act-version", HTMLSelectElement);
  chosen.replaceChildren();
  if (!isReset) {
    done.disabled = true;
    offer(name, chosen, done);
  }
  const form = byId("act-form", HTMLFormElement);
  form.onsubmit = async (event) => {
    event.preventDefault();
    done.disabled = true;
    const asked = question;
    const to = isReset || !chosen.value ? "" : `&to=${chosen.value}`;
    const refused = await perform(`${act}?stream=${encodeURIComponent(name)}${to}`);
    if (!refused) announce(isReset ? `${short} was reset.` : `${short} was rolled back.`);
    if (asked !== question) return;
    done.disabled = false;
    if (refused) setText(byId("act-error", HTMLElement), refused);
    else dialog.close();
  };
  byId("act-cancel", HTMLButtonElement).onclick = () => dialog.close();
  dialog.showModal();
}

/**
 * Fill in the good states that there are, the latest first.
 * @param {string} name
 * @param {HTMLSelectElement} chosen
 * @param {HTMLButtonElement} done
 */
async function offer(name, chosen, done) {
  const asked = question;
  try {
    const answer = await request(`snapshots?stream=${encodeURIComponent(name)}`, {}, "read");
    if (!answer.ok) throw new Error(await sentence(answer));
    /** @type {Snapshots} */
    const { snapshots, unavailable } = await answer.json();
    if (asked !== question) return;
    if (unavailable) throw new Error(unavailable);
    if (!snapshots.length) throw new Error("No good state of it is kept yet.");
    const options = [...snapshots].reverse().map(({ version, images }) =>
      element("option", { value: String(version) }, `version ${count(version)}, after ${count(images)} images`),
    );
    chosen.replaceChildren(...options);
    done.disabled = false;
  } catch (error) {
    if (asked === question) setText(byId("act-error", HTMLElement), told(error));
  }
}

/**
 * @param {string} path
 * @returns {Promise<string>} why it was not done; empty where it was
 */
async function perform(path) {
  try {
    const answer = await request(path, { method: "POST" }, "control");
    return answer.ok ? "" : await sentence(answer);
  } catch (error) {
    return told(error);
  }
}

/**
 * What went wrong, for a person.
 * @param {unknown} error
 */
export function told(error) {
  if (error instanceof NoToken) return `${error.message} None was given.`;
  if (error instanceof TypeError) return "The server cannot be reached.";
  return error instanceof Error ? error.message : String(error);
}
