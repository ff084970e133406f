// Each part of the page from the data of the server.

import { ago, behind, bytes, count, el, figure, note, put, signed, span, svg, table, when } from "./dom.js";
import { bars, legend, lines } from "./chart.js";
import { graph, scatter, shape } from "./map.js";

const parts = {}; // what was drawn last: some parts are shown in another one too
let dreamed = 0; // the dream that is shown

function tile(name, value, about, className = "") {
  return el("div", { class: `tile ${className}` }, el("dt", {}, name), el("dd", {}, value, about ? el("small", {}, about) : null));
}

function tiles() {
  const o = parts.overview, frozen = parts.outcomes?.regret?.frozen;
  if (!o) return;
  const last = o.alarm_times.at(-1), given = parts.rewards?.rewards ?? [], qualities = parts.rewards?.trajectories ?? [];
  const sum = (each) => each.reduce((all, { count: n }) => all + n, 0), mean = (each) => each.reduce((all, { mean: m, count: n }) => all + m * n, 0) / sum(each);
  put("tiles",
    tile("Decisions", count(o.decisions), `${count(o.arms)} arm${o.arms === 1 ? "" : "s"}, ${bytes(o.bytes)}`),
    tile("Rewards", count(o.rewards), o.pruned ? `${count(o.pruned)} decisions pruned` : null),
    qualities.length ? tile("Mean quality", figure(mean(qualities)), `of the newest ${count(sum(qualities))} trajectories`) :
      given.length ? tile("Mean reward", figure(mean(given)), `of the newest ${count(sum(given))}`) : tile("Mean reward", "–", "no rewards yet"),
    tile("Against the frozen model", frozen ? signed(frozen.served - frozen.value, 2) : "–",
      frozen ? `frozen ${figure(frozen.value)}, 95 %: ${figure(frozen.low)} to ${figure(frozen.high)}` : "not estimated"),
    tile("Served", o.published === null ? (o.state ? "learned" : "–") : `version ${o.published}`,
      o.asked > 0 ? `version ${o.asked} is asked for` : o.trial === null ? (o.published === null ? null : "and what was learned since") : `version ${o.trial} is on trial`),
    tile("Drift alarms", o.alarms === null ? "–" : count(o.alarms), last ? `last ${ago(last)}` : o.alarms === null ? "not watched" : "none",
      last && Date.now() / 1000 - last < 86400 ? "warn" : ""),
    tile("Learned state", o.state ? `rank ${o.state.rank}` : "–", o.state ? `dim ${count(o.state.dim)}, ${bytes(o.state.bytes)}` : "nothing is saved yet"));
}

function marks() {
  const versions = (parts.versions?.versions ?? []).map((v) => ({
    time: v.created, className: v.verdict === "accept" ? "accepted" : "version", words: `${v.id}: ${v.verdict}, ${when(v.created)}` }));
  return [...versions, ...(parts.overview?.alarm_times ?? []).map((time) => ({ time, className: "alarm", words: `drift alarm, ${when(time)}` }))];
}

// Times as numbers of rewards, where that is what the axis counts.
function placed(series, along) {
  let seen = 0;
  return (time) => {
    if (along === "time") return time;
    seen = 0;
    for (const each of series) {
      if (each.to >= time) return seen + each.count * Math.max(0, Math.min(1, (time - each.from) / (each.to - each.from || 1)));
      seen += each.count;
    }
    return seen;
  };
}

function rewards(along) {
  const data = parts.rewards;
  if (!data) return;
  const given = data.rewards.length ? data.rewards : data.trajectories, what = data.rewards.length ? "reward" : "quality";
  if (!given.length) return put("rewards", note("No rewards yet."));
  let seen = 0;
  const line = (series) => series.map((each) => {
    seen += each.count;
    const x = along === "time" ? (each.from + each.to) / 2 : seen - each.count / 2, spread = each.error === null ? undefined : 1.96 * each.error;
    return { x, y: each.mean, low: spread === undefined ? undefined : each.mean - spread, high: spread === undefined ? undefined : each.mean + spread,
      words: `${when(each.to)}: mean ${what} ${figure(each.mean)}${spread === undefined ? "" : ` ± ${figure(spread, 2)}`} of ${count(each.count)}` };
  });
  const where = placed(given, along);
  const values = given.map((each) => each.mean), fits = Math.min(...values) >= 0 && Math.max(...values) <= 1;
  const flags = marks().filter(({ time }) => time >= given[0].from && time <= given.at(-1).to).map((mark) => ({ ...mark, x: where(mark.time) }));
  put("rewards",
    lines({ title: `Mean ${what}`, series: [{ name: what, className: "s1", points: line(given) }], marks: flags, isTime: along === "time", ...(fits ? { low: 0, high: 1 } : {}) }),
    legend([["s1", `mean ${what}, 95 % band`], ...(flags.some((f) => f.className === "accepted") ? [["flag accepted", "accepted by the gate"]] : []),
      ...(flags.some((f) => f.className === "version") ? [["flag version", "other version"]] : []), ...(flags.some((f) => f.className === "alarm") ? [["flag alarm", "drift alarm"]] : [])]),
    behind("rewards", `Mean ${what} over time`, [["From", (r) => when(r.from)], ["To", (r) => when(r.to)], ["Rewards", (r) => count(r.count), "n"],
      ["Mean", (r) => figure(r.mean), "n"], ["Standard error", (r) => figure(r.error, 2), "n"]], given));
}

function regret(along) {
  const data = parts.outcomes?.regret;
  if (!data) return;
  if (!data.points.length) return put("regret", note(data.reason ? `Not estimated: ${data.reason}.` : "No rewards of decisions yet."));
  const points = data.points.map((p) => ({ ...p, x: along === "time" ? p.time : p.count, y: p.regret,
    words: `${when(p.time)}, after ${count(p.count)} rewards: ${signed(p.regret)} (95 %: ${signed(p.low)} to ${signed(p.high)})` }));
  put("regret",
    lines({ title: "Regret against the frozen model", series: [{ name: "regret", className: "s2", points }], isTime: along === "time", zero: true }),
    note("Rewards that the frozen model would have earned beyond what was served, added up, with a 95 % band: below zero it earned less. Estimated from the logged propensities."),
    behind("regret", "Regret against the frozen model", [["When", (p) => when(p.time)], ["Rewards", (p) => count(p.count), "n"],
      ["Regret", (p) => signed(p.regret), "n"], ["95 % from", (p) => signed(p.low), "n"], ["to", (p) => signed(p.high), "n"]], data.points));
}

function share(part) {
  return svg("svg", { viewBox: "0 0 100 8", class: "share", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("rect", { class: "ground", width: 100, height: 8 }), svg("rect", { class: "bar", width: Math.max(0, Math.min(1, part)) * 100, height: 8 }));
}

function arms() {
  const data = parts.outcomes;
  if (!data) return;
  if (!data.arms.listed.length) return put("arms", note("No rewards of decisions yet."));
  put("arms", table(`Of the newest ${count(data.count)} rewards of decisions`, [["Arm", (a) => a.arm, "text"], ["Chosen", (a) => count(a.count), "n"],
    ["Share", (a) => [share(a.count / data.count), el("span", { class: "percent" }, `${figure((100 * a.count) / data.count, 2)} %`)], "n"],
    ["Mean reward", (a) => `${figure(a.mean)}${a.error === null ? "" : ` ± ${figure(1.96 * a.error, 2)}`}`, "n"]], data.arms.listed),
  data.arms.more ? note(`and ${count(data.arms.more)} more`) : null);
}

function flat(values, before = "") {
  return Object.entries(values ?? {}).flatMap(([name, value]) => (value !== null && typeof value === "object" && !Array.isArray(value)
    ? flat(value, `${before}${name} `) : [[`${before}${name}`, typeof value === "number" ? figure(value, 5) : Array.isArray(value) ? JSON.stringify(value) : String(value ?? "–")]]));
}

function versions(serve) {
  const data = parts.versions;
  if (!data) return;
  if (data.damage) return put("versions", note(data.damage, "bad"));
  if (!data.versions.length) return put("versions", note("No versions yet: the background loop makes them."));
  const evidence = (v) => {
    const rows = flat({ ...v.metrics, window: v.window });
    return rows.length ? el("details", { "data-key": `v${v.number}` }, el("summary", {}, "Evidence"), el("dl", { class: "evidence" },
      rows.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))))) : null;
  };
  const action = (v) => (v.published ? el("span", { class: "badge served" }, "served") : data.asked === v.number ? el("span", { class: "badge" }, "asked for")
    : el("button", { type: "button", "aria-label": `Roll back to ${v.id}`, onclick: (event) => serve(v, event.currentTarget) }, "Roll back"));
  put("versions", table("Newest first", [["Version", (v) => v.id, "id"], ["Made", (v) => when(v.created)],
    ["Gate", (v) => [el("span", { class: `badge ${v.verdict}` }, v.verdict), v.number === data.trial ? el("span", { class: "badge trial" }, "on trial") : null]],
    ["Reason", (v) => [el("span", { class: "reason" }, v.reason), evidence(v)], "text"], ["", action, "act"]],
  data.versions.map((v) => ({ ...v, className: v.published ? "now" : "" })), "cards"));
}

function patterns() {
  const data = parts.patterns;
  if (!data) return;
  if (data.damage) return put("patterns", note(data.damage, "bad"));
  if (!data.count) return put("patterns", note("No patterns yet: the background loop finds them."));
  const verdicts = (p) => p.verdicts.map((v) => el("span", { class: `verdict ${v.improvement > 0 ? "good" : "poor"}` }, `${v.arm} ${signed(v.improvement, 2)}`));
  put("patterns",
    scatter(`${count(data.points.length)} patterns`, data.points, ([id, , , size, quality]) => `pattern ${id}: ${count(size)} requests, mean reward ${figure(quality)}`),
    legend([0, 1, 2, 3, 4].map((q) => [`swatch q${q}`, q === 0 ? "mean reward below .2" : q === 4 ? "above .8" : `.${2 * q} to .${2 * q + 2}`])),
    note(`${data.points.length < data.count ? `The ${count(data.points.length)} largest of ${count(data.count)}` : `All ${count(data.count)}`} patterns on their two largest principal components, which hold ${figure(100 * data.variance, 2)} % of the variance; area is the number of requests. ${count(data.verdicts)} verdicts on arms.`),
    el("details", { "data-key": "patterns" }, el("summary", {}, "The largest patterns, and which arms do better or worse there"),
      table("The largest patterns", [["Pattern", (p) => String(p.id)], ["Requests", (p) => count(p.size), "n"], ["Mean reward", (p) => figure(p.quality), "n"],
        ["Verdicts", verdicts, "text"]], data.listed)));
}

const MANY = { pattern: "patterns", memory: "memories", episode: "episodes", similarity: "similarities", coactivation: "co-activations" };

// The nodes of a dream, what they are joined to, and the edges among all these.
function around(data, dream) {
  const visited = new Set(dream.nodes), near = new Set(visited);
  for (const edge of data.edges) {
    if (visited.has(edge.from)) near.add(edge.to);
    if (visited.has(edge.to)) near.add(edge.from);
  }
  return { nodes: data.nodes.filter((node) => near.has(node.id)), edges: data.edges.filter((edge) => near.has(edge.from) && near.has(edge.to)) };
}

function memory() {
  const data = parts.memory;
  if (!data) return;
  if (data.damage) return put("memory", note(data.damage, "bad"));
  if (!data.history.length && !data.nodes.length) return put("memory", note("No memory yet: the deep loop tends it."));
  const { nodes = {}, edges = {} } = data.counts, list = (counts) => Object.entries(counts).map(([kind, n]) => `${count(n)} ${n === 1 ? kind : MANY[kind] ?? kind}`).join(", ");
  dreamed = Math.min(dreamed, Math.max(data.dreams.length - 1, 0));
  const stage = el("div", {});
  const show = () => {
    const dream = data.dreams[dreamed] ?? null, some = dream ? around(data, dream) : data;
    stage.replaceChildren(graph(`${some.nodes.length} nodes of the memory`, some, dream));
  };
  const pick = data.dreams.length ? el("label", {}, "Dream ", el("select", { onchange: (event) => { dreamed = Number(event.target.value); show(); } },
    data.dreams.map((dream, i) => el("option", { value: i, selected: i === dreamed },
      `${i + 1}: ${dream.nodes.length} steps, ${dream.proposals.length} proposed, density ${figure(dream.density, 2)}, Φ ${figure(dream.phi, 2)}`)))) : null;
  show();
  const ran = data.history.filter((h) => h.density !== null);
  const line = (name, className) => ({ name, className, points: ran.map((h) => ({ x: h.cycle, y: h[name],
    words: `cycle ${h.cycle}, ${when(h.at)}: density ${figure(h.density, 2)}, coherence ${figure(h.coherence, 2)}, Φ ${figure(h.phi, 2)} bits; ${h.passed} of ${h.dreams} dreams passed` })) });
  put("memory", note(`${list(nodes)}; edges: ${list(edges)}. Drawn: ${data.dreams.length ? "what a dream of the last cycle visited, and what is around it" : "the strongest"}.`), pick, stage,
    el("ul", { class: "legend" }, ["pattern", "memory", "episode"].map((kind) => el("li", {}, shape(kind), kind)),
      [["edge similarity", "similarity"], ["edge coactivation", "used together"], ["edge creative", "from a dream"], ["path", "path of the dream"], ["proposed", "proposed"]].map(([className, text]) =>
        el("li", {}, svg("svg", { viewBox: "0 0 22 12", width: 22, height: 12, "aria-hidden": "true" }, svg("line", { class: className, x1: 1, x2: 21, y1: 6, y2: 6 })), text))),
    ran.length > 1 ? [el("h3", {}, "Dreams of each deep cycle"), lines({ title: "Dreams of each deep cycle", series: [line("density", "s1"), line("coherence", "s3"), line("phi", "s2")], isTime: false }),
      legend([["s1", "density"], ["s3", "coherence"], ["s2", "Φ, bits a step"]])] : null,
    data.history.length ? behind("memory", "Deep cycles", [["Cycle", (h) => String(h.cycle)], ["When", (h) => when(h.at)], ["Dreams", (h) => count(h.dreams), "n"], ["Passed", (h) => count(h.passed), "n"],
      ["Density", (h) => figure(h.density, 2), "n"], ["Coherence", (h) => figure(h.coherence, 2), "n"], ["Φ", (h) => figure(h.phi, 2), "n"], ["Edges", (h) => count(h.edges), "n"]], data.history.toReversed()) : null);
}

function delay() {
  const data = parts.outcomes?.delay;
  if (!data) return;
  if (!data.bars.length) return put("delay", el("h3", {}, "From decision to reward"), note("No rewards of decisions yet."));
  const named = data.bars.map((bar, i) => ({ name: bar.to === null ? "more" : `≤ ${span(bar.to)}`, value: bar.count,
    words: `${bar.to === null ? `more than ${span(data.bars[i - 1].to)}` : `at most ${span(bar.to)}`}: ${count(bar.count)} rewards` }));
  put("delay", el("h3", {}, "From decision to reward"), bars({ title: "Time from decision to reward", bars: named }),
    note(`Half within ${span(data.p50)}, 90 % within ${span(data.p90)}, 99 % within ${span(data.p99)}.`),
    behind("delay", "Time from decision to reward", [["At most", (b) => (b.to === null ? "more" : span(b.to))], ["Rewards", (b) => count(b.count), "n"]], data.bars));
}

const WATCHED = { sona_store_dropped_total: "rows lost", sona_store_failed_total: "writes that failed", sona_unrecorded_total: "decisions not recorded",
  sona_rejected_total: "rewards refused", sona_unknown_feedback_total: "rewards of unknown decisions", sona_loop_a_dropped_total: "trajectories dropped" };

function processes() {
  const data = parts.processes;
  if (!data) return;
  if (!data.processes.length) return put("processes", el("h3", {}, "Processes"),
    el("p", { class: "quiet" }, "How long a request takes, and what was dropped, the processes that serve know: ",
      el("code", {}, "sona dashboard STORE --metrics http://127.0.0.1:PORT/metrics"), " shows it."));
  put("processes", data.processes.map((process) => [el("h3", {}, process.url), process.error ? note(process.error, "bad") : [
    process.histograms.map((h) => {
      const kept = h.bars.filter(([upper, n], i) => n > 0 || (i > 0 && h.bars[i - 1][1] > 0) || h.bars[i + 1]?.[1] > 0), total = h.bars.reduce((sum, [, n]) => sum + n, 0);
      if (!total) return null;
      const name = `${h.name.replace(/^sona_|_seconds$/g, "")}${h.labels ? ` (${h.labels})` : ""}`;
      return [el("h4", {}, `${name}: half within ${span(quantile(h.bars, 0.5))}, 99 % within ${span(quantile(h.bars, 0.99))}`), bars({ title: `Time of ${name}`, bars: kept.map(([upper, n]) => ({
        name: upper === null ? "more" : `≤ ${span(upper)}`, value: n, words: `${upper === null ? "more" : `at most ${span(upper)}`}: ${count(n)}` })) })];
    }),
    table("Drops", [["What", ([name, labels]) => `${WATCHED[name]}${labels ? ` (${labels})` : ""}`, "text"], ["Since it began", ([, , n]) => count(n), "n"]],
      process.values.filter(([name]) => WATCHED[name]).map((row) => Object.assign(row, { className: row[2] > 0 ? "bad" : "" }))),
  ]]));
}

function quantile(given, q) {
  const total = given.reduce((sum, [, n]) => sum + n, 0);
  let seen = 0;
  for (const [upper, n] of given) if ((seen += n) >= q * total) return upper;
  return null;
}

const DRAWN = {
  overview: [tiles, rewards], rewards: [rewards, tiles], outcomes: [regret, arms, delay, tiles], versions: [versions, rewards], patterns: [patterns], memory: [memory], processes: [processes],
};
const TAKES = { rewards: (context) => context.along, regret: (context) => context.along, versions: (context) => context.serve };

// Takes in a part and draws what it is in; without data, draws again what depends on `along`.
export function draw(part, data, context) {
  if (data) parts[part] = data;
  for (const each of part === null ? [rewards, regret] : DRAWN[part]) each(TAKES[each.name]?.(context));
}
