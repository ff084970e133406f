// Elements and words. Whatever comes from the store becomes text, never markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return made;
}

export function el(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

export function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

let pointed = { place: null, at: 0 };
document.addEventListener("pointermove", (event) => { pointed = { place: event.target.closest?.(".part") ?? null, at: performance.now() }; });
const waiting = new Map(); // id -> what is drawn there when nobody reads it any more

// Whether somebody reads a chart there: it has the keyboard's focus, or the pointer was moved over it a moment ago.
function read(place) {
  return place.querySelector("svg[role=img]:focus-visible") !== null || (pointed.place === place && performance.now() - pointed.at < 2000);
}

setInterval(() => {
  for (const [id, children] of [...waiting]) put(id, ...children);
}, 500);

export function put(id, ...children) {
  const place = document.getElementById(id);
  waiting.delete(id);
  if (read(place)) {
    waiting.set(id, children);
    return;
  }
  const open = new Set([...place.querySelectorAll("details[open]")].map((each) => each.dataset.key));
  place.replaceChildren(...children.flat(Infinity).filter(Boolean));
  for (const each of place.querySelectorAll("details")) if (open.has(each.dataset.key)) each.open = true;
}

export function note(text, kind = "quiet") {
  return el("p", { class: kind }, text);
}

// A table that a narrow screen shows as cards: each cell knows its heading. Columns: [heading, row => cell, class].
export function table(caption, columns, rows, className = "") {
  const head = el("tr", {}, columns.map(([name, , kind]) => el("th", { scope: "col", class: kind ?? "" }, name)));
  const body = rows.map((row) => el("tr", { class: row.className ?? "" }, columns.map(([name, cell, kind], at) =>
    el(at ? "td" : "th", { "data-name": name, class: kind ?? "", scope: at ? null : "row" }, cell(row) ?? ""))));
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    el("table", { class: className }, el("caption", {}, caption), el("thead", {}, head), el("tbody", {}, body)));
}

// The numbers behind a chart, for those who cannot see it and those who want them.
export function behind(key, caption, columns, rows) {
  return el("details", { "data-key": key }, el("summary", {}, "Numbers"), table(caption, columns, rows));
}

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
export const count = (value) => (value === null || value === undefined ? "–" : whole.format(value));
export const short = (value) => (Math.abs(value) >= 10000
  ? new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 }).format(value) : count(value));
export function figure(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  return Math.abs(value) >= 1000 ? whole.format(value) : String(Number(value.toPrecision(digits)));
}
export const signed = (value, digits = 3) => (value > 0 ? `+${figure(value, digits)}` : figure(value, digits).replace("-", "−"));

export function bytes(value) {
  for (const unit of ["B", "kB", "MB"]) {
    if (value < 1024) return `${figure(value)} ${unit}`;
    value /= 1024;
  }
  return `${figure(value)} GB`;
}

export function span(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  for (const [unit, length] of [["d", 86400], ["h", 3600], ["min", 60], ["s", 1], ["ms", 1e-3], ["µs", 1e-6]]) {
    if (seconds >= length * 0.9995) return `${figure(seconds / length, 3)} ${unit}`;
  }
  return `${figure(seconds * 1e9, 3)} ns`;
}

const moment = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium", hour12: false });
export const when = (seconds) => moment.format(new Date(seconds * 1000));
export const ago = (seconds) => `${span(Math.max(Date.now() / 1000 - seconds, 0))} ago`;
