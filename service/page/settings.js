/** The settings as they are, and where each comes from; read when somebody looks. */

import { told } from "./control.js";
import { byId, element, setText } from "./dom.js";
import { sentence } from "./events.js";
import { cut } from "./format.js";
import { request } from "./tokens.js";

/** @typedef {import("./wire").Status} Status */

export class SettingsView {
  constructor() {
    this.details = byId("settings", HTMLDetailsElement);
    this.details.addEventListener("toggle", () => this.details.open && this.read());
    byId("settings-again", HTMLButtonElement).addEventListener("click", () => this.read());
    byId("settings-set", HTMLInputElement).addEventListener("change", () => this.filter());
  }

  async read() {
    const said = byId("settings-said", HTMLElement);
    try {
      const answer = await request("status", {}, "read");
      if (!answer.ok) throw new Error(await sentence(answer));
      this.show(await answer.json());
      setText(said, "");
    } catch (error) {
      setText(said, told(error));
    }
  }

  /** @param {Status} status */
  show({ settings, model, device, versions }) {
    const sources = settings.sources ?? {};
    const lines = Object.entries(settings.server).map(([name, value]) => {
      const { source, name: where } = sources[name] ?? { source: "", name: null };
      const by = source === "default" ? ", by " : " ";
      const line = row(name, value, where ? source + by + where : source);
      line.dataset.source = source;
      return line;
    });
    byId("server-settings", HTMLTableSectionElement).replaceChildren(...lines);
    const method = Object.entries(settings.method).map(([name, value]) => row(name, value));
    byId("method-settings", HTMLTableSectionElement).replaceChildren(...method);
    const { class_names: names, ...rest } = model;
    const served = Object.entries({ ...rest, class_names: names, device, ...versions });
    byId("served", HTMLTableSectionElement).replaceChildren(
      ...served.map(([name, value]) => row(name, value)),
    );
    this.filter();
  }

  /** Show all of them, or those that somebody set. */
  filter() {
    const onlySet = byId("settings-set", HTMLInputElement).checked;
    const lines = [...byId("server-settings", HTMLTableSectionElement).rows];
    for (const line of lines) line.hidden = onlySet && line.dataset.source === "default";
    const shown = lines.filter(({ hidden }) => !hidden).length;
    setText(byId("settings-count", HTMLElement), `${shown} of ${lines.length} settings`);
  }
}

/**
 * @param {string} name
 * @param {unknown} value
 * @param {string} [from]
 */
function row(name, value, from) {
  const text = inWords(value);
  const cells = [
    element("th", { scope: "row" }, name),
    element("td", { title: text }, cut(text, 80)),
    ...(from === undefined ? [] : [element("td", {}, from)]),
  ];
  return element("tr", {}, ...cells);
}

/**
 * @param {unknown} value
 * @returns {string}
 */
function inWords(value) {
  if (value === null || value === undefined || value === "") return "none";
  if (value === true) return "on";
  if (value === false) return "off";
  if (Array.isArray(value)) return value.length ? value.map(inWords).join(", ") : "none";
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}
