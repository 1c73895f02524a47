/** Try an image: dropped, chosen, or from this machine's camera; and the answer to it. */

import { Camera } from "./camera.js";
import { told } from "./control.js";
import { announce, byId, element, icon, setText } from "./dom.js";
import { sentence } from "./events.js";
import { cut, number, percent } from "./format.js";
import { modeOf } from "./streams.js";
import { request } from "./tokens.js";

/** @typedef {import("./state.js").Live} Live */
/** @typedef {import("./wire").Answer} Answer */

const TOP = 5;
const SECONDS_BETWEEN = 1;

export class Trial {
  /** @param {Live} live */
  constructor(live) {
    this.live = live;
    this.camera = new Camera();
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.timer = undefined;
    /** How many images were asked about: an answer to one before the last is nobody's. */
    this.asked = 0;
    this.error = byId("try-error", HTMLElement);
    this.picture = byId("picture", HTMLImageElement);
    this.useCamera = byId("use-camera", HTMLButtonElement);
    this.takePicture = byId("take-picture", HTMLButtonElement);
    this.again = byId("again", HTMLInputElement);
    const place = byId("drop", HTMLElement);
    const file = byId("file", HTMLInputElement);
    byId("choose", HTMLButtonElement).addEventListener("click", () => file.click());
    file.addEventListener("change", () => {
      this.take([...(file.files ?? [])]);
      file.value = ""; // the same file may be chosen again
    });
    // A file that is dropped beside would otherwise replace the page.
    for (const kind of ["dragover", "drop"]) {
      document.addEventListener(kind, (event) => event.preventDefault());
    }
    place.addEventListener("dragover", () => place.classList.add("over"));
    place.addEventListener("dragleave", () => place.classList.remove("over"));
    place.addEventListener("drop", (event) => {
      place.classList.remove("over");
      this.take([...(event.dataTransfer?.files ?? [])]);
    });
    document.addEventListener("paste", (event) => {
      const files = [...(event.clipboardData?.files ?? [])];
      if (files.length) this.take(files);
    });
    this.useCamera.addEventListener("click", () => this.switchCamera());
    this.takePicture.addEventListener("click", () => this.photograph());
    this.again.addEventListener("change", () => {
      if (this.again.checked) this.photograph();
      else clearTimeout(this.timer);
    });
    // What is no image, or one of a kind that browsers do not show.
    this.picture.addEventListener("error", () => (this.picture.hidden = true));
  }

  /** @param {File[]} files */
  take(files) {
    if (files.length) this.ask(files[0]);
    if (files.length !== 1) {
      this.complain(files.length ? "One image at a time: the first was taken." : "That was no file.");
    }
  }

  async switchCamera() {
    this.complain("");
    try {
      if (this.camera.isOn) this.camera.stop();
      else await this.camera.start();
    } catch (error) {
      this.complain(told(error));
    }
    const { isOn } = this.camera;
    this.useCamera.setAttribute("aria-pressed", String(isOn));
    setText(this.useCamera, isOn ? "Stop the camera" : "Use this machine's camera");
    byId("camera", HTMLElement).hidden = !isOn;
    if (!isOn) this.again.checked = false;
  }

  /** Ask about what the camera sees; again, while that is wanted. */
  async photograph() {
    if (!this.camera.isOn) return;
    try {
      const isWell = await this.ask(await this.camera.picture(), !this.again.checked);
      if (!isWell) this.again.checked = false;
    } catch (error) {
      this.complain(told(error));
      this.again.checked = false;
    }
    clearTimeout(this.timer);
    if (this.again.checked) {
      this.timer = setTimeout(() => this.photograph(), 1000 * SECONDS_BETWEEN);
    }
  }

  /**
   * @param {Blob} image
   * @param {boolean} aloud say the answer to those who hear the page
   * @returns {Promise<boolean>} whether it was answered
   */
  async ask(image, aloud = true) {
    const asked = ++this.asked;
    this.complain("");
    this.preview(image);
    const stream = byId("try-stream", HTMLInputElement).value.trim() || "page";
    const learn = byId("learn", HTMLInputElement).checked;
    const query = new URLSearchParams({
      stream,
      top_k: String(Math.min(TOP, this.live.state?.model.classes ?? TOP)),
      // What is only to be answered leaves no trace in what is expected next, either.
      ...(learn ? {} : { learn: "false", context: "false" }),
    });
    const headers = { "Content-Type": image.type || "application/octet-stream" };
    const started = performance.now();
    try {
      const path = `predict?${query}`;
      const answer = await request(path, { method: "POST", body: image, headers }, "predict");
      if (!answer.ok) throw new Error(await sentence(answer));
      const told = await answer.json();
      if (asked === this.asked) this.show(told, learn, performance.now() - started, aloud);
      return true;
    } catch (error) {
      if (asked !== this.asked) return false;
      byId("answer", HTMLElement).hidden = true;
      this.complain(told(error));
      return false;
    }
  }

  /** @param {Blob} image */
  preview(image) {
    if (this.picture.src) URL.revokeObjectURL(this.picture.src);
    this.picture.hidden = false;
    this.picture.src = URL.createObjectURL(image);
  }

  /** @param {string} text */
  complain(text) {
    setText(this.error, text);
  }

  /**
   * @param {Answer} answer
   * @param {boolean} learn it was asked to
   * @param {number} milliseconds
   * @param {boolean} aloud
   */
  show(answer, learn, milliseconds, aloud) {
    const [found] = answer.predictions;
    const bars = found.top_k.map(({ name, confidence }) => {
      const bar = element("span", { class: "bar", "aria-hidden": "true" });
      bar.style.width = `${100 * confidence}%`;
      return element(
        "tr",
        {},
        element("th", { scope: "row", title: name }, cut(name, 32)),
        element("td", { class: "bars" }, bar),
        element("td", { class: "number" }, percent(confidence)),
      );
    });
    byId("scores", HTMLTableSectionElement).replaceChildren(...bars);
    const mode = modeOf(found.mode);
    const classes = this.live.state?.model.classes;
    const most = classes ? ` of at most ${number(Math.log(classes))}` : "";
    fact("answer-mode", icon(mode.icon), `${mode.word}: ${mode.title}`);
    fact("answer-entropy", `${found.entropy.toFixed(3)} nats${most}`);
    fact("answer-suspect", found.suspect ? icon("warn") : icon("ok"), found.suspect ?? "no");
    fact("answer-taught", taught(found.selected, learn, found.shed));
    fact("answer-version", `${answer.version} of ${cut(answer.stream, 40)}`);
    fact("answer-digest", answer.model_digest ?? "not known");
    fact("answer-took", `${number(milliseconds)} ms, as this browser saw it`);
    byId("answer", HTMLElement).hidden = false;
    if (aloud) announce(`It is ${cut(found.name, 60)}, ${percent(found.confidence)}.`);
  }
}

/**
 * @param {boolean} selected
 * @param {boolean} learn
 * @param {string | null} shed
 */
function taught(selected, learn, shed) {
  if (!learn) return "no, it was only to be answered";
  if (shed) return "no, the queue stands: learning was given up";
  return selected ? "yes" : "no, it was not selected";
}

/**
 * @param {string} id
 * @param {...(Node | string)} parts
 */
function fact(id, ...parts) {
  byId(id, HTMLElement).replaceChildren(...parts);
}
