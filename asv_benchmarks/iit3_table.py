"""How long does Phi of IIT 3.0 take, and is it PyPhi's?  CPU seconds of `sona.iit3`, and of PyPhi on the same networks where there is one.

    [SONA_PYPHI=PYTHON] python asv_benchmarks/iit3_table.py [--rounds 3] [--networks NAME ...] [--json FILE]

SONA_PYPHI is the Python of an environment that has PyPhi 1.2; without it times stand alone. Each round starts a new PyPhi process and times
its first Phi, without the import; sona.iit3, which keeps nothing between calls, runs before and after it. Ratios are medians over rounds.
PyPhi has one round where it takes most of a minute or more, and none where it would take hours.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from row import print_lines, seconds

import sona

F64 = NDArray[np.float64]
PEER = Path(__file__).resolve().with_name("pyphi_peer.py")
SAMPLE = 0.2  # seconds of sona.iit3 before and after PyPhi, at least one call
TARGET = 100.0  # times faster than PyPhi
SAME = 1e-9


@dataclass(frozen=True)
class Network:
    """`peer_rounds`: most rounds for PyPhi."""

    tpm: F64
    state: tuple[int, ...]
    cm: NDArray[np.bool_]
    peer_rounds: int = 99


def states(n: int) -> NDArray[np.int64]:
    """(2^n, n) node i in state s"""
    return np.arange(1 << n)[:, None] >> np.arange(n) & 1


def network(tpm: F64, state: tuple[int, ...], peer_rounds: int = 99) -> Network:
    """Connected where a chance depends on a node."""
    index = np.arange(len(tpm))
    cm = np.array([(tpm != tpm[index ^ 1 << i]).any(axis=0) for i in range(tpm.shape[1])])
    return Network(tpm, state, cm, peer_rounds)


def gates(*rules: Callable[[Any], Any]) -> F64:
    """State-by-node from rules that see node i of all states as s[i]."""
    s = states(len(rules)).T
    return np.stack([np.broadcast_to(rule(s), s[0].shape) for rule in rules], axis=1).astype(float)


def automaton(rule: int, n: int) -> F64:
    """A ring of cells under a rule of Wolfram's numbering."""
    s = states(n)
    return (rule >> (4 * np.roll(s, 1, axis=1) + 2 * s + np.roll(s, -1, axis=1)) & 1).astype(float)


def noisy(n: int, inputs: int, seed: int) -> F64:
    """Uniform chances; a node depends on this many, the one before it and others at random."""
    rng = np.random.default_rng(seed)
    tpm = np.empty((1 << n, n))
    for j in range(n):
        others = [i for i in range(n) if i != (j - 1) % n]
        seen = sum(1 << int(i) for i in [(j - 1) % n, *rng.choice(others, inputs - 1, replace=False)])
        tpm[:, j] = rng.random(1 << n)[np.arange(1 << n) & seen]
    return tpm


def pair(first: int, second: int) -> Callable[[Any], Any]:
    """1 for sure where both are, else with a chance of .3"""
    return lambda s: np.where(s[first] & s[second], 1.0, 0.3)


MACRO = network(gates(pair(2, 3), pair(2, 3), pair(0, 1), pair(0, 1)), (0, 0, 0, 0))

NETWORKS = {
    "basic": network(gates(lambda s: s[1] | s[2], lambda s: s[2], lambda s: s[0] ^ s[1]), (1, 0, 0)),
    "xor": network(gates(lambda s: s[1] ^ s[2], lambda s: s[0] ^ s[2], lambda s: s[0] ^ s[1]), (0, 0, 0)),
    "fig4": network(gates(lambda s: s[1] | s[2], lambda s: s[0] & s[2], lambda s: s[0] ^ s[1]), (1, 0, 0)),
    "majority3": network(gates(*[lambda s: s.sum(axis=0) >= 2] * 3), (0, 0, 0)),
    "rule110": network(automaton(110, 3), (1, 0, 1)),
    "noisy3": network(noisy(3, 3, 0), (0, 0, 0)),
    "macro": MACRO,
    "macro, cm of ones": replace(MACRO, cm=np.ones((4, 4), bool)),  # PyPhi asks cm what it can leave out, sona.iit3 the table
    "noisy4": network(noisy(4, 4, 0), (0, 0, 0, 0), 1),
    "rule154": network(automaton(154, 5), (1, 1, 1, 1, 1), 1),
    "noisy5": network(noisy(5, 5, 0), (0,) * 5, 0),
    "noisy6, 3 inputs": network(noisy(6, 3, 0), (0,) * 6, 0),
    "noisy6": network(noisy(6, 6, 0), (0,) * 6, 0),
    "noisy7, 2 inputs": network(noisy(7, 2, 0), (0,) * 7, 0),
}


def own(given: Network) -> float:
    """CPU seconds of a call, the median of some."""
    found: list[float] = []
    while sum(found) < SAMPLE:
        start = time.process_time()
        sona.iit3(given.tpm, given.cm, given.state)
        found.append(time.process_time() - start)
    return median(found)


def asked(python: str, given: Network) -> dict[str, Any]:
    text = json.dumps({"tpm": given.tpm.tolist(), "cm": given.cm.astype(int).tolist(), "state": given.state})
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    with TemporaryDirectory() as directory:  # for its log
        command = [python, str(PEER)]
        done = subprocess.run(command, input=text, stdout=subprocess.PIPE, text=True, check=True, env=environment, cwd=directory)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def measure(name: str, given: Network, python: str | None, rounds: int) -> dict[str, Any]:
    result = sona.iit3(given.tpm, given.cm, given.state)
    row: dict[str, Any] = {"network": name, "phi": result.phi, "concepts": len(result.concepts), "seconds": own(given)}
    rounds = min(rounds, given.peer_rounds)
    if python is None or not rounds:
        return row
    answers, ratios = [], []
    for _ in range(rounds):
        before, answer, after = own(given), asked(python, given), own(given)
        answers.append(answer)
        ratios.append(answer["seconds"] / ((before + after) / 2))
    answer = answers[0]
    same = [list(c.mechanism) for c in result.concepts] == [mechanism for mechanism, _ in answer["concepts"]]
    apart = [abs(c.phi - phi) for c, (_, phi) in zip(result.concepts, answer["concepts"], strict=False)]
    cut = answer["cut"] is None or tuple(map(tuple, answer["cut"])) in result.ties
    row |= {"peer_seconds": median(a["seconds"] for a in answers), "ratio": median(ratios), "difference": abs(result.phi - answer["phi"])}
    return row | {"concept_difference": max(apart, default=0.0), "same_cut": cut, "same_concepts": same}


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    first = (row["network"], f"{row['phi']:.6f}", str(row["concepts"]), seconds(row["seconds"]))
    if "ratio" not in row:
        return (*first, "", "", "", "", "")
    agree = "yes" if row["same_cut"] and row["same_concepts"] and row["concept_difference"] <= SAME else "no"
    met = "yes" if row["ratio"] >= TARGET and row["difference"] <= SAME else "no"
    return (*first, seconds(row["peer_seconds"]), f"{row['ratio']:.0f}x", f"{row['difference']:.1e}", agree, met)


HEAD = ("network", "Phi", "concepts", "sona.iit3", "PyPhi", "ratio", "difference", "same cut, concepts", f"{TARGET:.0f}x, same Phi")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    python = os.environ.get("SONA_PYPHI")
    if python is None:
        print("PyPhi left out: set SONA_PYPHI to the Python of an environment that has it", file=sys.stderr)
    rows = []
    for name in arguments.networks:
        rows.append(measure(name, NETWORKS[name], python, arguments.rounds))
        print(f"{name}: {rows[-1]}", file=sys.stderr, flush=True)
    print_lines([HEAD, *map(cells, rows)])
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
