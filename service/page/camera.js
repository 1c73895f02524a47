/** This machine's camera, as pictures. */

import { byId } from "./dom.js";

/** @type {Record<string, string>} What browsers call the ways in which it may fail. */
const FAILURES = {
  NotAllowedError: "The browser does not let this page use the camera.",
  NotFoundError: "This machine has no camera.",
  NotReadableError: "Another program uses the camera.",
};

export class Camera {
  constructor() {
    this.video = byId("video", HTMLVideoElement);
    /** @type {MediaStream | null} */
    this.stream = null;
  }

  /** @throws {Error} with a sentence: why there is none */
  async start() {
    if (!navigator.mediaDevices) {
      throw new Error("Browsers give cameras to pages over https, or of this machine, alone.");
    }
    try {
      this.stream = await navigator.mediaDevices.getUserMedia({ video: true });
    } catch (error) {
      const name = error instanceof DOMException ? error.name : "";
      throw new Error(FAILURES[name] ?? `The camera cannot be used: ${String(error)}`);
    }
    this.video.srcObject = this.stream;
    await this.video.play();
  }

  stop() {
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    this.stream = null;
    this.video.srcObject = null;
  }

  get isOn() {
    return this.stream !== null;
  }

  /**
   * What it sees now, as a JPEG.
   * @returns {Promise<Blob>}
   */
  picture() {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [this.video.videoWidth, this.video.videoHeight];
    canvas.getContext("2d")?.drawImage(this.video, 0, 0);
    return new Promise((resolve, reject) => {
      const done = (/** @type {Blob | null} */ blob) =>
        blob ? resolve(blob) : reject(new Error("The camera gave no picture."));
      canvas.toBlob(done, "image/jpeg", 0.92);
    });
  }
}
