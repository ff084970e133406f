// Patterns in a plane, and the nodes of the memory with a dream's path.

import { svg, figure } from "./dom.js";
import { cursor, responsive } from "./chart.js";

const nearestOf = (places) => (x, y) => places.reduce((best, p, n) =>
  ((p.x - x) ** 2 + (p.y - y) ** 2 < (places[best].x - x) ** 2 + (places[best].y - y) ** 2 ? n : best), 0);

// points: [id, x, y, size, quality], the largest first.
export function scatter(title, points, words) {
  return responsive((width) => {
    const height = Math.min(Math.round(width * 0.75), 420), pad = 18;
    const most = Math.max(...points.map((p) => p[3]), 1);
    const places = points.map((p) => ({
      x: pad + ((p[1] + 1) / 2) * (width - 2 * pad),
      y: pad + ((1 - p[2]) / 2) * (height - 2 * pad),
      r: 2 + 9 * Math.sqrt(p[3] / most),
      className: `dot q${Math.max(0, Math.min(4, Math.floor(p[4] * 5)))}`,
      words: words(p),
    }));
    const ring = svg("circle", { class: "cursor", r: 8, cx: -20, cy: -20 });
    const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": `${title}. Arrow keys read them, the largest first.` },
      places.map((p) => svg("circle", { class: p.className, cx: p.x.toFixed(1), cy: p.y.toFixed(1), r: p.r.toFixed(1) })), ring);
    const line = cursor(drawing, places, (p) => {
      for (const [name, value] of [["cx", p.x], ["cy", p.y], ["r", p.r + 3]]) ring.setAttribute(name, value);
    }, nearestOf(places));
    return [drawing, line];
  });
}

// Springs and repulsion (Fruchterman and Reingold), from places on a spiral, so that the same graph lies the same way each time. A spring
// of a node with many is weaker, so that what is densely joined does not shrink to a dot.
export function layout(nodes, edges) {
  const n = nodes.length, at = new Map(nodes.map((node, i) => [node.id, i]));
  const x = new Float64Array(n), y = new Float64Array(n), degree = new Float64Array(n);
  for (let i = 0; i < n; i++) {
    x[i] = Math.sqrt((i + 0.5) / n) * Math.cos(2.39996 * i);
    y[i] = Math.sqrt((i + 0.5) / n) * Math.sin(2.39996 * i);
  }
  const springs = edges.map((edge) => [at.get(edge.from), at.get(edge.to), edge.weight]);
  for (const [i, j] of springs) { degree[i]++; degree[j]++; }
  const ideal = 1.2 / Math.sqrt(n || 1), rounds = 240;
  for (let round = 0; round < rounds; round++) {
    const dx = new Float64Array(n), dy = new Float64Array(n), heat = 0.1 * (1 - round / rounds);
    for (let i = 0; i < n; i++) {
      for (let j = i + 1; j < n; j++) {
        const a = x[i] - x[j], b = y[i] - y[j], force = (ideal * ideal) / (a * a + b * b + 1e-6);
        dx[i] += a * force; dy[i] += b * force; dx[j] -= a * force; dy[j] -= b * force;
      }
      const pull = 1.6 * ideal * Math.hypot(x[i], y[i]);
      dx[i] -= x[i] * (0.25 + pull); dy[i] -= y[i] * (0.25 + pull);
    }
    for (const [i, j, weight] of springs) {
      const a = x[i] - x[j], b = y[i] - y[j], force = ((Math.hypot(a, b) / ideal) * weight * 1.5) / Math.sqrt(degree[i] * degree[j]);
      dx[i] -= a * force; dy[i] -= b * force; dx[j] += a * force; dy[j] += b * force;
    }
    for (let i = 0; i < n; i++) {
      const length = Math.hypot(dx[i], dy[i]) || 1, step = Math.min(length, heat) / length;
      x[i] += dx[i] * step; y[i] += dy[i] * step;
    }
  }
  const box = (values) => [Math.min(...values), Math.max(...values)];
  const [left, right] = box(x), [top, bottom] = box(y);
  return nodes.map((node, i) => ({ x: (x[i] - left) / (right - left || 1), y: (y[i] - top) / (bottom - top || 1) }));
}

const SHAPES = {
  pattern: (r) => `M${-r} ${-r}h${2 * r}v${2 * r}h${-2 * r}z`,
  memory: (r) => `M0 ${-1.3 * r}l${1.3 * r} ${1.3 * r}l${-1.3 * r} ${1.3 * r}l${-1.3 * r} ${-1.3 * r}z`,
  episode: (r) => `M${-r} 0a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0z`,
};

export function shape(kind) {
  return svg("svg", { viewBox: "-8 -8 16 16", width: 16, height: 16, "aria-hidden": "true", class: `node ${kind}` }, svg("path", { d: SHAPES[kind](5) }));
}

// dream: {nodes, proposals} or null
export function graph(title, { nodes, edges }, dream) {
  const relative = layout(nodes, edges);
  const row = new Map(nodes.map((node, i) => [node.id, i]));
  return responsive((width) => {
    const height = Math.min(Math.round(width * 0.8), 440), pad = 20;
    const visited = new Map((dream?.nodes ?? []).map((id, step) => [id, step]));
    const places = nodes.map((node, i) => ({
      x: pad + relative[i].x * (width - 2 * pad),
      y: pad + relative[i].y * (height - 2 * pad),
      words: `${node.kind} ${node.id}: strength ${figure(node.strength)}, quality ${figure(node.quality)}${node.text ? `, ${node.text}` : ""}`,
    }));
    const segment = (u, v, className) => svg("line", {
      class: className, x1: places[row.get(u)].x, y1: places[row.get(u)].y, x2: places[row.get(v)].x, y2: places[row.get(v)].y });
    const path = (dream?.nodes ?? []).filter((id) => row.has(id)).map((id, i) => `${i ? "L" : "M"}${places[row.get(id)].x.toFixed(1)} ${places[row.get(id)].y.toFixed(1)}`);
    const ring = svg("circle", { class: "cursor", r: 10, cx: -20, cy: -20 });
    const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": `${title}. Arrow keys read its nodes.` },
      edges.map((edge) => segment(edge.from, edge.to, `edge ${edge.kind}`)),
      path.length ? svg("path", { class: "path", d: path.join("") }) : null,
      (dream?.proposals ?? []).filter((pair) => pair.every((id) => row.has(id))).map(([u, v]) => segment(u, v, "proposed")),
      nodes.map((node, i) => svg("g", { class: `node ${node.kind}${visited.has(node.id) ? " visited" : ""}`, transform: `translate(${places[i].x.toFixed(1)} ${places[i].y.toFixed(1)})` },
        svg("path", { d: SHAPES[node.kind](visited.has(node.id) ? 6 : 3.5) }))),
      [...visited].filter(([id]) => row.has(id)).map(([id, step]) =>
        svg("text", { class: "step", x: places[row.get(id)].x, y: places[row.get(id)].y - 9, "text-anchor": "middle" }, step + 1)),
      ring);
    const line = cursor(drawing, places, (p) => { ring.setAttribute("cx", p.x); ring.setAttribute("cy", p.y); }, nearestOf(places));
    return [drawing, line];
  });
}
