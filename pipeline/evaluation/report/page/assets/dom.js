"use strict";
// Makes elements. Text goes in as text nodes only, so that nothing in the data can become markup.
const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) node.append(child);
  }
  return node;
}

// Replaces what is in an element. Children that are null are left out, as by `el`.
function refill(node, ...children) {
  node.replaceChildren();
  return fill(node, null, children);
}

// Text that somebody else wrote: its direction is its own, and cannot reach the text around it.
const data = (text, tag = "bdi", attributes = {}) => el(tag, { dir: "auto", class: "data", ...attributes }, text);

const percent = (share, digits = 1) => (share === null || share === undefined ? "–" : `${(share * 100).toFixed(digits)} %`);
const count = (number) => (number === null || number === undefined ? "–" : number.toLocaleString("en-US"));
const short = (number) =>
  number === null || number === undefined ? "–" : Number.isInteger(number) ? String(number) : number.toFixed(Math.abs(number) < 0.1 ? 3 : 2);

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
}

// A table that scrolls sideways by itself, also from the keyboard. A cell of the head may be [text, class].
function table(label, head, rows, foot) {
  const body = el("table", null,
    head && el("thead", null, el("tr", null, head.map((cell) => (Array.isArray(cell) ? el("th", { scope: "col", class: cell[1] }, cell[0]) : el("th", { scope: "col" }, cell))))),
    el("tbody", null, rows), foot && el("tfoot", null, foot));
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, body);
}
