// The token, requests, and the stream that says which parts have something new.

const KEY = "sona-token";

// Out of the address bar and the history, into this tab's storage: a header carries it, so no other site can.
function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    sessionStorage.setItem(KEY, given);
    history.replaceState(null, "", location.pathname);
  }
  return sessionStorage.getItem(KEY) ?? "";
}

const token = takeToken();

export function hasToken() {
  return token !== "";
}

async function request(path, options = {}) {
  const answer = await fetch(path, { ...options, cache: "no-store", headers: { ...options.headers, "X-Sona-Token": token } });
  if (answer.ok) return answer;
  const about = await answer.json().catch(() => ({}));
  throw Object.assign(new Error(about.error ?? `status ${answer.status}`), { status: answer.status });
}

export async function get(part, newest) {
  return (await request(`/api/${part}?newest=${newest}`)).json();
}

export async function rollback(version) {
  const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ version }) };
  return (await request("/api/rollback", options)).json();
}

// Server-sent events, read by hand: an EventSource cannot send a header. Calls hear(event, data) for each, and again after a break.
export async function listen(hear) {
  for (let wait = 1000; ; wait = Math.min(wait * 2, 10000)) {
    try {
      const reader = (await request("/api/events")).body.pipeThrough(new TextDecoderStream()).getReader();
      wait = 500;
      let text = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        text += value;
        const events = text.split("\n\n");
        text = events.pop();
        for (const event of events) {
          const name = /^event: (.*)$/m.exec(event);
          const data = /^data: (.*)$/m.exec(event);
          if (name && data) hear(name[1], JSON.parse(data[1]));
        }
      }
      hear("gone", { error: "the server has ended" });
    } catch (error) {
      hear(error.status === 403 ? "refused" : "gone", { error: error.message });
      if (error.status === 403) return;
    }
    await new Promise((resume) => setTimeout(resume, wait));
  }
}
