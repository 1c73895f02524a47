/** Elements, made and found. Texts are only ever texts: names of streams come from strangers. */

/**
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag
 * @param {Record<string, string>} [attributes]
 * @param {...(Node | string)} children
 * @returns {HTMLElementTagNameMap[T]}
 */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const SVG = "http://www.w3.org/2000/svg";

/**
 * @template {keyof SVGElementTagNameMap} T
 * @param {T} tag
 * @param {Record<string, string | number>} [attributes]
 * @param {...Node} children
 * @returns {SVGElementTagNameMap[T]}
 */
export function drawn(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  made.append(...children);
  return made;
}

/**
 * One of the symbols in index.html. It says nothing to a screen reader: words stand beside it.
 * @param {string} name
 */
export function icon(name) {
  return drawn(
    "svg",
    { class: `icon icon-${name}`, "aria-hidden": "true", viewBox: "0 0 16 16" },
    drawn("use", { href: `#icon-${name}` }),
  );
}

/**
 * @template {Element} E
 * @param {string} id
 * @param {new () => E} kind
 * @returns {E}
 */
export function byId(id, kind) {
  const found = document.getElementById(id);
  if (!(found instanceof kind)) throw new Error(`There is no ${kind.name} #${id}.`);
  return found;
}

/**
 * Change a text only where it is another: what did not change is not laid out anew.
 * @param {Node} node
 * @param {string} text
 */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/**
 * @param {Element} node
 * @param {string} name
 * @param {string} value
 */
export function setAttribute(node, name, value) {
  if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

/**
 * Have these children, in this order. Those that are in their place stay there: to move an element
 * takes the focus from it, and a reader's place.
 * @param {Element} parent
 * @param {Element[]} children
 */
export function arrange(parent, children) {
  const wanted = new Set(children);
  for (const child of [...parent.children]) if (!wanted.has(child)) child.remove();
  children.forEach((child, index) => {
    const there = parent.children[index] ?? null;
    if (there !== child) parent.insertBefore(child, there);
  });
}

/** Lines of a table that stay the same elements as long as what they show is the same. */
export class Lines {
  /** @param {Element} parent */
  constructor(parent) {
    this.parent = parent;
    /** @type {Map<string, Element>} */
    this.made = new Map();
  }

  /** @param {{key: string, make: () => Element}[]} wanted a key says all that its line shows */
  show(wanted) {
    const before = this.made;
    this.made = new Map(wanted.map(({ key, make }) => [key, before.get(key) ?? make()]));
    arrange(this.parent, [...this.made.values()]);
  }
}

/**
 * Tell those who hear the page. Sparingly: only what somebody waits for or must not miss.
 * @param {string} sentence
 */
export function announce(sentence) {
  byId("announced", HTMLElement).textContent = sentence;
}
