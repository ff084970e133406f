// Lines and bars as SVG: a cursor that pointer and arrow keys move, its values in words below, and room for any width.

import { el, svg, figure, short } from "./dom.js";

const HEIGHT = 230;
const MARGIN = { top: 14, right: 12, bottom: 28, left: 46 };

function nice(low, high, about) {
  const raw = (high - low) / about || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 2.5, 5, 10].find((each) => each * power >= raw * 0.999);
  const ticks = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-9; at += step) ticks.push(Math.abs(at) < step * 1e-6 ? 0 : at);
  return ticks;
}

const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800, 1209600, 2592000,
  7776000, 31536000];

function times(low, high, about) {
  const step = STEPS.find((each) => (high - low) / each <= about) ?? (high - low) / about;
  const shift = new Date(low * 1000).getTimezoneOffset() * 60;
  const ticks = [];
  for (let at = Math.ceil((low - shift) / step) * step + shift; at <= high; at += step) ticks.push(at);
  const options = step >= 86400 ? { month: "short", day: "numeric" } : step >= 60 ? { hour: "2-digit", minute: "2-digit" }
    : { hour: "2-digit", minute: "2-digit", second: "2-digit" };
  const format = new Intl.DateTimeFormat(undefined, { ...options, hour12: false });
  return ticks.map((at) => [at, format.format(new Date(at * 1000))]);
}

// Redraws when there is more or less room than before.
export function responsive(draw) {
  const host = el("div", { class: "chart" });
  let width = 0;
  new ResizeObserver(([entry]) => {
    const now = Math.floor(entry.contentRect.width);
    if (now > 0 && Math.abs(now - width) > 1) {
      width = now;
      const focused = host.contains(document.activeElement);
      host.replaceChildren(...draw(width));
      if (focused) host.querySelector("svg").focus({ preventScroll: true });
    }
  }).observe(host);
  return host;
}

// What pointer and keys do on a drawing with places that have words: [{x, y, words}] in the order of the arrow keys.
export function cursor(drawing, places, mark, nearest) {
  const words = el("p", { class: "readout", "aria-live": "polite" }, drawing.dataset.hint ?? "");
  let at = -1;
  const show = (next) => {
    if (!places.length) return;
    at = Math.max(0, Math.min(places.length - 1, next));
    mark(places[at]);
    words.textContent = places[at].words;
  };
  drawing.setAttribute("tabindex", "0");
  drawing.addEventListener("pointermove", (event) => {
    const box = drawing.getBoundingClientRect();
    const scale = drawing.viewBox.baseVal.width / box.width;
    show(nearest((event.clientX - box.left) * scale, (event.clientY - box.top) * scale));
  });
  drawing.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
    if (step) show(at < 0 ? (step > 0 ? 0 : places.length - 1) : at + step);
    else if (event.key === "Home") show(0);
    else if (event.key === "End") show(places.length - 1);
    else return;
    event.preventDefault();
  });
  return words;
}

// series: [{name, className, points: [{x, y, low, high, words}]}]; the first is what the cursor follows. marks: [{x, words, className}].
export function lines({ title, series, marks = [], isTime, low, high, zero = false, format = figure }) {
  const all = series.flatMap((each) => each.points);
  return responsive((width) => {
    const left = Math.min(...all.map((p) => p.x)), right = Math.max(...all.map((p) => p.x));
    const values = all.flatMap((p) => [p.y, p.low ?? p.y, p.high ?? p.y]);
    let bottom = low ?? Math.min(...values, ...(zero ? [0] : [])), top = high ?? Math.max(...values, ...(zero ? [0] : []));
    if (top - bottom < 1e-9) [bottom, top] = [bottom - 0.5, top + 0.5];
    const pad = (top - bottom) * 0.06;
    bottom -= low === undefined ? pad : 0;
    top += high === undefined ? pad : 0;
    const inner = width - MARGIN.left - MARGIN.right;
    const x = (value) => MARGIN.left + (right > left ? (value - left) / (right - left) : 0.5) * inner;
    const y = (value) => MARGIN.top + (1 - (value - bottom) / (top - bottom)) * (HEIGHT - MARGIN.top - MARGIN.bottom);
    const ground = HEIGHT - MARGIN.bottom;
    const yTicks = nice(bottom, top, 4), about = Math.max(2, Math.floor(width / 90));
    const xTicks = isTime ? times(left, right, about) : nice(left, right, about).filter(Number.isInteger).map((at) => [at, short(at)]);
    const grid = yTicks.map((at) => [
      svg("line", { class: zero && at === 0 ? "zero" : "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(at), y2: y(at) }),
      svg("text", { class: "tick", x: MARGIN.left - 6, y: y(at) + 4, "text-anchor": "end" }, format(at)),
    ]);
    const axis = xTicks.filter(([at]) => x(at) < width - 18).map(([at, text]) => [
      svg("line", { class: "grid", x1: x(at), x2: x(at), y1: ground, y2: ground + 4 }),
      svg("text", { class: "tick", x: x(at), y: HEIGHT - 8, "text-anchor": x(at) < MARGIN.left + 24 ? "start" : "middle" }, text),
    ]);
    const flags = marks.filter((mark) => mark.x >= left && mark.x <= right).map((mark) =>
      svg("g", { class: `flag ${mark.className}` }, svg("title", {}, mark.words),
        svg("line", { x1: x(mark.x), x2: x(mark.x), y1: MARGIN.top - 6, y2: ground }),
        svg("path", { d: `M${x(mark.x)} ${MARGIN.top - 8}l5 5 -5 5 -5 -5z` })));
    const drawn = series.map(({ points, className }) => {
      const path = points.map((p, at) => `${at ? "L" : "M"}${x(p.x).toFixed(1)} ${y(p.y).toFixed(1)}`).join("");
      const banded = points.filter((p) => p.low !== undefined);
      const edge = (side) => banded.map((p) => `${x(p.x).toFixed(1)} ${y(Math.max(bottom, Math.min(top, p[side]))).toFixed(1)}`);
      return svg("g", { class: className },
        banded.length > 1 ? svg("path", { class: "band", d: `M${edge("high").join("L")}L${edge("low").reverse().join("L")}Z` }) : null,
        svg("path", { class: "line", d: path }),
        points.length === 1 ? svg("circle", { class: "point", cx: x(points[0].x), cy: y(points[0].y), r: 4 }) : null);
    });
    const rule = svg("line", { class: "cursor", y1: MARGIN.top, y2: ground, x1: -9, x2: -9 });
    const dot = svg("circle", { class: "cursor", r: 4.5, cx: -9, cy: -9 });
    const drawing = svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, height: HEIGHT, role: "img", "aria-label": `${title}. Arrow keys read its values.` },
      grid, axis, drawn, flags, rule, dot);
    const places = series[0].points;
    const words = cursor(drawing, places, (p) => {
      for (const [name, value] of [["x1", x(p.x)], ["x2", x(p.x)]]) rule.setAttribute(name, value);
      dot.setAttribute("cx", x(p.x));
      dot.setAttribute("cy", y(p.y));
    }, (at) => places.reduce((best, p, n) => (Math.abs(x(p.x) - at) < Math.abs(x(places[best].x) - at) ? n : best), 0));
    return [drawing, words];
  });
}

export function legend(entries) {
  return el("ul", { class: "legend" }, entries.map(([className, text]) =>
    el("li", {}, svg("svg", { viewBox: "0 0 22 12", width: 22, height: 12, "aria-hidden": "true", class: className },
      className.startsWith("flag") ? svg("path", { d: "M11 1l5 5 -5 5 -5 -5z" }) : svg("line", { class: "line", x1: 1, x2: 21, y1: 6, y2: 6 })), text)));
}

// bars: [{name, value, words}]
export function bars({ title, bars: given }) {
  return responsive((width) => {
    const slot = (width - 12) / given.length, turned = slot < 58, ground = 116, height = ground + (turned ? 58 : 26);
    const most = Math.max(...given.map((bar) => bar.value), 1);
    const places = given.map((bar, at) => ({ x: (at + 0.5) * slot, y: ground - (bar.value / most) * (ground - 12), words: bar.words }));
    const rule = svg("rect", { class: "chosen", y: 2, height: ground, width: slot, x: -slot * 2 });
    const drawn = given.map((bar, at) => [
      svg("rect", { class: "bar", x: at * slot + slot * 0.12, width: slot * 0.76, y: places[at].y, height: Math.max(ground - places[at].y, bar.value ? 1 : 0) }),
      svg("text", turned ? { class: "tick", transform: `translate(${places[at].x + 3} ${ground + 8}) rotate(60)` }
        : { class: "tick", x: places[at].x, y: ground + 16, "text-anchor": "middle" }, bar.name),
    ]);
    const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": `${title}. Arrow keys read its values.` },
      rule, drawn, svg("line", { class: "grid", x1: 0, x2: width, y1: ground, y2: ground }));
    const words = cursor(drawing, places, (p) => rule.setAttribute("x", p.x - slot / 2), (at) => Math.min(Math.floor(at / slot), places.length - 1));
    return [drawing, words];
  });
}
