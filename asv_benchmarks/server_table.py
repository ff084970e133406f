"""What does learning cost the example server under load?  wrk against csrc/examples/server, with sona and without, in turns.

    python asv_benchmarks/server_table.py [--alone] [--rounds 20] [--seconds 1] [--json FILE]

Both servers have one thread, 20 arms and vectors of 384 floats; wrk has one thread. Beside wrk a client routes 100 requests a second and
reports a reward for each, so that the one with sona learns while it is measured; the one without takes the same requests and rewards and
does nothing with them. Ratios are medians over rounds of the ratio within a round, of the half of the rounds in which other processes took
least of the machine ("others", in cores). "CPU" is processor time of the server per request, which others move less. Targets: 95 % of the
requests, and a p99 that is at most 50 us later.

--alone is for a machine that is not quiet: server and clients run at realtime priority. Where they take all they can get they share one
core, so that the machine stays usable; at the load that leaves time between requests each has one.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
from row import print_lines
from table import machine

ROOT = Path(__file__).resolve().parent.parent
DIM, ARMS = 384, 20
PACE = 100  # rewards per second while wrk runs
LEAST, MOST_US = 0.95, 50.0  # the targets

# Lua of wrk: bodies.f32 holds the vectors of the requests.
SCRIPT = """
local dim, turn, requests, waiting = %(dim)d, 0, {}, {}
function init(args)
  local file = io.open("%(bodies)s", "rb")
  while true do
    local body = file:read(4 * dim)
    if not body then break end
    requests[#requests + 1] = wrk.format("POST", "%(path)s", nil, body)
  end
  file:close()
end
function request()
  local id = %(rewards)s and table.remove(waiting)
  if id then return wrk.format("POST", "/feedback?reward=" .. math.random(0, 1) .. "&id=" .. id) end
  turn = turn %% #requests + 1
  return requests[turn]
end
if %(rewards)s then
  function response(status, headers, body)
    local id = body:match('"id":(%%d+)')
    if id then waiting[#waiting + 1] = id end
  end
end
if %(pause)d > 0 then
  function delay() return %(pause)d end
end
function done(summary, latency)
  local e = summary.errors
  io.write(string.format('\\nRESULT {"requests": %%d, "us": %%d, "errors": %%d, "p50": %%f, "p99": %%f}\\n', summary.requests,
    summary.duration, e.connect + e.read + e.write + e.timeout + e.status, latency:percentile(50), latency:percentile(99)))
end
"""


@dataclass(frozen=True)
class Load:
    """
    Attributes
    ----------
    what, path : str
    connections : int
    pause : int
        Milliseconds between an answer and the next request of a connection. 0: as many requests as the server takes, which says how many
        that is; latency is then waiting for the others, and is told apart at a load that leaves time between requests.
    rewards : bool
        A reward follows each decision.
    """

    what: str
    path: str
    connections: int = 8
    pause: int = 0
    rewards: bool = False


LOADS = (
    Load("/embed, as many as it takes", "/embed"),
    Load("/route, as many as it takes", "/route"),
    Load("/embed, 8 clients, 1 ms apart", "/embed", pause=1),
    Load("/route, 8 clients, 1 ms apart", "/route", pause=1),
    Load("/route, each rewarded at once", "/route", rewards=True),
)


@dataclass
class Server:
    pid: int
    client: http.client.HTTPConnection
    port: int
    rewards: list[int] = field(default_factory=list)

    def post(self, path: str, body: bytes = b"") -> bytes:
        self.client.request("POST", path, body)
        answer = self.client.getresponse()
        found = answer.read()
        if answer.status != 200:
            raise SystemExit(f"{path}: {answer.status} {found!r}")
        return found

    def cpu(self) -> float:
        """Seconds that its threads have run."""
        tasks = Path(f"/proc/{self.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) * 1e-9


@contextmanager
def serving(arms: Path, *options: str) -> Iterator[Server]:
    command = [str(ROOT / "csrc/build/examples/server"), str(arms), str(ARMS), str(DIM), "--port", "0", "--threads", "1", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline().rsplit(":", 1)[1])
            client = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            yield Server(process.pid, client, port)
            client.close()
        finally:
            process.send_signal(signal.SIGTERM)


class Task:
    """Requests around the directions of the arms; of each two, one wants its own arm and the other the next one."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.arms = self.unit(self.rng.normal(size=(ARMS, DIM)))

    @staticmethod
    def unit(x: np.ndarray) -> np.ndarray:
        return np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True), "<f4")

    def request(self) -> tuple[bytes, int]:
        k = int(self.rng.integers(ARMS))
        x = self.unit(self.arms[k] + 0.7 * self.unit(self.rng.normal(size=DIM)))
        return x.tobytes(), (k + k % 2) % ARMS

    def teach(self, server: Server) -> None:
        x, right = self.request()
        chosen = json.loads(server.post("/route", x))
        server.rewards.append(int(chosen["arm"] == right))
        server.post(f"/feedback?id={chosen['id']}&reward={server.rewards[-1]}")


@dataclass(frozen=True)
class Measured:
    rate: float  # requests per second
    p50: float  # microseconds
    p99: float
    cpu: float  # microseconds per request
    others: float  # cores that other processes took


def busy() -> float:
    """Seconds that all cores have worked, also for other machines on the same hardware."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def own(server: Server) -> float:
    """Seconds of them that this measurement has taken: server, wrk and this process."""
    return server.cpu() + sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def separate(server: Server, load: Load, cores: list[int]) -> None:
    """Cores for server and clients."""
    first, last = cores[0] if load.pause else cores[-1], cores[-1]
    for task in Path(f"/proc/{server.pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {last})
    os.sched_setaffinity(0, {first})


def measure(server: Server, task: Task, load: Load, options: argparse.Namespace, place: Path) -> Measured:
    """One run of wrk, with a paced teacher beside it."""
    if options.alone:
        separate(server, load, options.cores)
    script = place / "load.lua"
    words = {"dim": DIM, "bodies": place / "bodies.f32", "path": load.path, "pause": load.pause}
    words["rewards"] = "true" if load.rewards else "false"
    script.write_text(SCRIPT % words)
    command = ["wrk", "-t1", f"-c{load.connections}", f"-d{options.seconds}s", "-s", str(script), f"http://127.0.0.1:{server.port}"]
    before, used, began = server.cpu(), busy() - own(server), time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as wrk:
        told = 0
        while wrk.poll() is None:
            if told < (time.monotonic() - began) * PACE:
                task.teach(server)
                told += 1
            else:
                time.sleep(0.5 / PACE)
        assert wrk.stdout is not None
        output = wrk.stdout.read()
    spent = server.cpu() - before
    others = (busy() - own(server) - used) / (time.monotonic() - began)
    lines = [line for line in output.splitlines() if line.startswith("RESULT ")]
    found = json.loads(lines[0].removeprefix("RESULT ")) if lines else {}
    if not found or found["errors"]:
        raise SystemExit(f"wrk: {output}")
    return Measured(found["requests"] / found["us"] * 1e6, found["p50"], found["p99"], spent / (found["requests"] + 2 * told) * 1e6, others)


def summary(load: Load, plain: list[Measured], learns: list[Measured]) -> tuple[str, ...]:
    pairs = sorted(zip(plain, learns, strict=True), key=lambda pair: pair[0].others + pair[1].others)
    plain, learns = (list(runs) for runs in zip(*pairs[: (len(pairs) + 1) // 2], strict=True))

    def middle(name: str, runs: list[Measured]) -> float:
        return median(getattr(run, name) for run in runs)

    cpu = median(own.cpu / other.cpu for own, other in zip(learns, plain, strict=True))
    if load.pause:
        figures = [f"{middle('p50', runs):.0f} / {middle('p99', runs):.0f} us" for runs in (plain, learns)]
        later = median(own.p99 - other.p99 for own, other in zip(learns, plain, strict=True))
        change, met = f"p99 {later:+.0f} us", later <= MOST_US
    else:
        figures = [f"{middle('rate', runs):,.0f} /s" for runs in (plain, learns)]
        share = median(own.rate / other.rate for own, other in zip(learns, plain, strict=True))
        change, met = f"{100 * share:.1f} %", share >= LEAST
    others = median(run.others for run in plain + learns)
    reached = "" if load.rewards else "yes" if met else "no"
    return (load.what, *figures, change, f"{middle('cpu', plain):.1f} us", f"{100 * (cpu - 1):+.1f} %", f"{others:.1f}", reached)


HEAD = ("load", "without", "with", "", "CPU a request without", "with", "others", "met")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=int, default=1, help="of each run of wrk")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--alone", action="store_true", help="at realtime priority, for which the user needs to be privileged")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        print("wrk is not installed: apt install wrk", file=sys.stderr)
        return 1
    about = machine()
    options.cores = sorted(os.sched_getaffinity(0))
    if options.alone:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    subprocess.run(["make", "-s", "-C", str(ROOT / "csrc"), "examples"], check=True, stdout=subprocess.DEVNULL)
    runs: dict[str, dict[str, list[Measured]]] = {load.what: {"plain": [], "learn": []} for load in LOADS}
    with tempfile.TemporaryDirectory() as directory:
        place, tasks = Path(directory), {mode: Task(options.seed) for mode in ("plain", "learn")}
        tasks["learn"].arms.tofile(place / "arms.f32")
        (place / "bodies.f32").write_bytes(b"".join(Task(options.seed).request()[0] for _ in range(64)))
        with serving(place / "arms.f32", "--plain") as plain, serving(place / "arms.f32") as learns:
            servers = {"plain": plain, "learn": learns}
            order = [(load, mode) for load in LOADS for mode in servers if not load.rewards]
            for n in range(options.rounds):
                for load, mode in order:
                    runs[load.what][mode].append(measure(servers[mode], tasks[mode], load, options, place))
                order = order[::-1] if n % 2 else [order[i ^ 1] for i in range(len(order))]
                print(f"round {n + 1} of {options.rounds}, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
        for load in LOADS:  # rewards at random teach nonsense: servers of their own
            for _ in range(options.rounds if load.rewards else 0):
                for mode, flags in (("plain", ("--plain",)), ("learn", ())):
                    with serving(place / "arms.f32", *flags) as server:
                        runs[load.what][mode].append(measure(server, Task(options.seed), load, options, place))
    for name, value in about.items():
        print(f"{name}: {value}")
    print()
    print_lines([HEAD, *(summary(load, *runs[load.what].values()) for load in LOADS)])
    print()
    for mode, server in servers.items():
        first, last = server.rewards[:100], server.rewards[-500:]
        told = f"{len(server.rewards)} requests of the task, all under load"
        print(f"{mode}: right in {sum(first)} of the first 100 and {sum(last)} of the last {len(last)} of {told}")
    if options.json:
        every = {what: {mode: [asdict(m) for m in some] for mode, some in both.items()} for what, both in runs.items()}
        options.json.write_text(json.dumps({**about, "runs": every, "rewards": {m: s.rewards for m, s in servers.items()}}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
