"""How long do rewards that wait for the store hold up an event loop?  The ways to give one in a coroutine, in turns, in one process.

    python asv_benchmarks/async_table.py [--clients 32] [--rounds 10] [--seconds 2] [--url postgresql://...] [--json FILE] [--quick]

Each of the clients routes a request, thinks for 20 ms and reports the reward, over and over. Beside them a task sleeps for 1 ms at a time;
by how much longer it slept is the delay of the event loop, which every request of the worker has. "Nothing waits": no reward is waited
for. Figures are medians over the rounds of what a round had, the longest delay that of all rounds. Durable: sync=True. Elsewhere: rewards
of decisions of another process, which are read from the store. Cycles: `background_learn` or `deep_learn` in a thread, one after the other.
Without --url a server is started on a Unix socket, with fsync on.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
from row import print_lines

from sona import Router
from sona.simulate import cpu_name

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

DIM, ARMS, THINK, TICK = 384, 20, 20e-3, 1e-3
ELSEWHERE = 20_000  # decisions of another process, and at most as many rewards in a run

CALLED = "`feedback`, called"
Give = Callable[[int, float], Awaitable[bool]]


def ways(router: Router, *, sync: bool) -> dict[str, Give]:
    async def called(id: int, reward: float) -> bool:
        return router.feedback(id, reward, sync=sync)

    async def thread(id: int, reward: float) -> bool:
        return await asyncio.to_thread(router.feedback, id, reward, sync=sync)

    async def awaited(id: int, reward: float) -> bool:
        return await router.afeedback(id, reward, sync=sync)

    return {CALLED: called, "`asyncio.to_thread(feedback)`": thread, "`afeedback`": awaited}


@dataclass(frozen=True)
class Round:
    """Of one way in one round; seconds."""

    delay_p50: float
    delay_p99: float
    delay_max: float
    rewards: float  # a second
    took_p50: float
    took_p99: float


@dataclass(frozen=True)
class Case:
    """
    Attributes
    ----------
    ids : iterator of int, optional
        Decisions that are rewarded instead of those that are made.
    cycle : callable, optional
        Called in a thread, again and again.
    """

    what: str
    way: str
    give: Give
    ids: Iterator[int] | None = None
    cycle: Callable[[], object] | None = None


async def play(router: Router, case: Case, x: np.ndarray, clients: int, seconds: float) -> Round:
    delays: list[float] = []
    took: list[float] = []
    end = time.perf_counter() + seconds

    async def tick() -> None:
        while (began := time.perf_counter()) < end:
            await asyncio.sleep(TICK)
            delays.append(time.perf_counter() - began - TICK)

    async def client(number: int) -> None:
        await asyncio.sleep(THINK * number / clients)
        while time.perf_counter() < end:
            decision = await router.aroute(x[number % len(x)])
            number += clients
            await asyncio.sleep(THINK)
            began = time.perf_counter()
            id = decision.id if case.ids is None else next(case.ids)
            if not await case.give(id, float(decision.index == number % ARMS)):
                raise SystemExit(f"reward of decision {id}: expected to be known")
            took.append(time.perf_counter() - began)

    async def cycles() -> None:
        while case.cycle is not None and time.perf_counter() < end:
            await asyncio.to_thread(case.cycle)

    began = time.perf_counter()
    turning = asyncio.create_task(cycles())
    await asyncio.gather(tick(), *(client(number) for number in range(clients)))
    rewards = len(took) / (time.perf_counter() - began)
    await turning
    return Round(*map(float, np.percentile(delays, (50, 99, 100))), rewards, *map(float, np.percentile(took, (50, 99))))


def cases(router: Router, ids: Iterator[int]) -> Iterator[Case]:
    plain = ways(router, sync=False)
    yield Case("nothing waits", CALLED, plain[CALLED])
    for name, give in ways(router, sync=True).items():
        yield Case("durable", name, give)
    for name, give in plain.items():
        yield Case("elsewhere", name, give, ids)
    yield Case("background cycles", CALLED, plain[CALLED], None, router.background_learn)
    yield Case("deep cycles", CALLED, plain[CALLED], None, lambda: router.deep_learn(duration=1.0))


def runs(where: str, clients: int, rounds: int, seconds: float) -> dict[tuple[str, str], list[Round]]:
    """By (case, way)."""
    rng = np.random.default_rng(0)
    x, arms = rng.standard_normal((512, DIM)).astype(np.float32), rng.standard_normal((ARMS, DIM))
    made: list[int] = []
    with Router(arms, store=where) as other:
        while len(made) < ELSEWHERE:
            made += [decision.id for decision in other.route_batch(x)]
            other.flush()
    found: dict[tuple[str, str], list[Round]] = {}
    with Router(arms, store=where) as router:
        for number in range(500):
            router.feedback(router.route(x[number]).id, float(number % 2))
        router.background_learn()  # what is imported on the way is imported by now
        router.deep_learn(duration=0.1)
        listed = list(cases(router, iter(made * 100)))  # a repeated one is read as well once it has left the memory
        for number in range(rounds):
            start = number % len(listed)
            for case in (*listed[start:], *listed[:start]):
                router.flush()
                found.setdefault((case.what, case.way), []).append(asyncio.run(play(router, case, x, clients, seconds)))
    return found


def lines(store: str, found: dict[tuple[str, str], list[Round]]) -> Iterator[tuple[str, ...]]:
    def ms(values: Iterator[float]) -> str:
        return f"{1e3 * median(values):.3g}"

    for (case, way), listed in found.items():
        longest = f"{1e3 * max(each.delay_max for each in listed):.3g}"
        delay = [ms(each.delay_p50 for each in listed), ms(each.delay_p99 for each in listed), longest]
        rewards = f"{median(each.rewards for each in listed):.0f}"
        yield store, case, way, *delay, rewards, ms(each.took_p50 for each in listed), ms(each.took_p99 for each in listed)


HEAD = ("store", "reward", "given by", "loop delay p50, ms", "p99", "longest", "rewards/s", "reward p50, ms", "p99")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--url")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    rounds, seconds = (2, 0.5) if options.quick else (options.rounds, options.seconds)
    print(f"{cpu_name()}; {options.clients} clients, {rounds} rounds of {seconds:g} s each, d={DIM}, K={ARMS}\n")
    server = None
    with tempfile.TemporaryDirectory(dir=".") as directory:
        places = {"SQLite": f"{directory}/sona.db"}
        if options.url is None:
            from postgres import NoServer, Server

            try:
                server = Server(fsync=True)
                places["PostgreSQL"] = server.url()
            except NoServer as error:
                print(f"PostgreSQL: {error}", file=sys.stderr)
        else:
            places["PostgreSQL"] = options.url
        try:
            found = {store: runs(where, options.clients, rounds, seconds) for store, where in places.items()}
        finally:
            if server is not None:
                server.close()
    print_lines([HEAD, *(line for store, by_case in found.items() for line in lines(store, by_case))])
    if options.json is not None:
        text = {store: [[*case, *map(asdict, listed)] for case, listed in by_case.items()] for store, by_case in found.items()}
        options.json.write_text(json.dumps(text, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
