// Fetches the parts, the most wanted first, and again what has something new.

import { get, hasToken, listen, rollback } from "./api.js";
import { draw } from "./panels.js";
import { put } from "./dom.js";

const FIRST = ["overview", "rewards"], THEN = ["versions", "outcomes", "patterns", "memory", "processes"];
const ORDER = [...FIRST, ...THEN];
const newest = document.getElementById("newest"), along = document.getElementById("along");
const shown = {}; // part -> tag of what is on the page
const due = {}; // part -> not before, ms
let wanted = {}; // part -> newest tag
let busy = false;

const context = () => ({ along: along.value, serve });

function live(state, text) {
  document.getElementById("live").className = state;
  document.getElementById("live-text").textContent = text;
}

function notice(text) {
  const place = document.getElementById("notice");
  place.textContent = text;
  place.hidden = !text;
}

async function load(part) {
  const began = performance.now(), range = newest.value;
  try {
    const data = await get(part, range);
    if (range !== newest.value) return; // asked for again
    shown[part] = data.tag;
    draw(part, data, context());
    if (part === "overview") {
      document.getElementById("store").textContent = `${data.path} · ${data.namespace}/${data.name}`;
      document.title = `sona · ${data.path.split("/").at(-1)}`;
      const other = data.names.filter((name) => name !== data.name);
      notice(data.damage ?? (!data.state && other.length ? `Nothing is kept under the name ${data.name}; there is ${other.join(", ")} (--name).` : ""));
    }
  } catch (error) {
    shown[part] = wanted[part];
    notice(`${part}: ${error.message}`);
  }
  // A part that takes long is not asked for all the time; processes are asked every five seconds.
  due[part] = performance.now() + (part === "processes" ? 5000 : Math.max(900, 10 * (performance.now() - began)));
}

// What is on the page and not the newest, one after the other, the most wanted first.
async function refresh() {
  if (busy || document.hidden) return;
  busy = true;
  try {
    for (const part of ORDER) {
      const old = part === "processes" ? hasProcesses() : wanted[part] !== undefined && shown[part] !== wanted[part];
      if (old && performance.now() >= (due[part] ?? 0)) await load(part);
    }
  } finally {
    busy = false;
  }
}

const hasProcesses = () => document.querySelector("#processes h3 + :not(.quiet)") !== null;

async function serve(version, button) {
  button.disabled = true;
  put("rollback", `Rolling back to ${version.id} …`);
  try {
    const done = await rollback(version.number);
    put("rollback", done.done ? `${done.id} is served from the next start on: no process learns for this store. What was served until now is kept as a version.`
      : `${done.id} is asked for: the process that learns serves it at its next reward or tick. What it served until then is kept as a version.`);
    await load("versions");
    await load("overview");
    watch(done);
  } catch (error) {
    put("rollback", `Not rolled back: ${error.message}`);
    button.disabled = false;
  }
}

// Until the wish is granted or refused.
async function watch(done) {
  while (!done.done) {
    await new Promise((resume) => setTimeout(resume, 1000));
    const { asked, versions } = await get("versions", newest.value).catch(() => ({ asked: done.number }));
    if (asked === -done.number) return put("rollback", `${done.id} was refused by the process that learns: its log says why.`);
    if (asked === done.number) continue;
    const now = versions?.find((version) => version.published);
    return put("rollback", now?.number === done.number ? `${done.id} is served.` : asked === null ? "" : `Version ${asked} is asked for.`);
  }
}

function hear(event, data) {
  if (event === "tags") {
    wanted = data;
    live("on", "live");
    refresh();
  } else if (event === "trouble") live("trouble", data.error);
  else if (event === "refused") {
    live("off", "no access");
    notice("Open the address that sona dashboard printed: the token in it is the key.");
  } else live("off", "the server does not answer; trying again");
}

async function begin() {
  if (!hasToken()) return hear("refused", {});
  await Promise.all(FIRST.map(load));
  requestAnimationFrame(() => requestAnimationFrame(() => { document.documentElement.dataset.painted = Math.round(performance.now()); }));
  for (const part of THEN) await load(part);
  document.documentElement.dataset.loaded = Math.round(performance.now());
  setInterval(refresh, 1000);
  listen(hear);
}

newest.addEventListener("change", async () => { for (const part of ["rewards", "outcomes"]) await load(part); });
along.addEventListener("change", () => draw(null, null, context()));
document.addEventListener("visibilitychange", refresh);
begin();
