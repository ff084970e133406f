"""Promises of iit3: the reference's values, those of a slow oracle written from the paper, and what no relabelling may change."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import linprog

import sona
from sona.errors import SonaTypeError, SonaValueError
from sona.memory import _iit3
from sona.memory.iit3 import Concept, major_complex

Array = np.ndarray[Any, Any]
Nodes = tuple[int, ...]


# ---- the reference ----


def reference() -> dict[str, Any]:
    """Its "iit3" part; without records where SONA_REFERENCE does not lead to it."""
    directory = os.environ.get("SONA_REFERENCE")
    path = Path(directory or "", "phi_reference.json")
    if not directory or not path.is_file():
        return {"networks": {}, "records": [], "major_complexes": []}
    found: dict[str, Any] = json.loads(path.read_text())["iit3"]
    return found


REFERENCE = reference()


def cases(kind: str) -> list[Any]:
    missing = pytest.mark.skip(reason="set SONA_REFERENCE to the directory that holds phi_reference.json")
    named = [pytest.param(r, id="-".join([r["network"], "".join(map(str, r["state"]))])) for r in REFERENCE[kind]]
    return named or [pytest.param(None, marks=missing, id="no reference")]


@pytest.mark.parametrize("record", cases("records"))
def test_reference_records(record: dict[str, Any]) -> None:
    network = REFERENCE["networks"][record["network"]]
    arguments = network["tpm_state_by_node"], network["cm"], record["state"]
    if record.get("reachable") is False:
        with pytest.raises(SonaValueError, match="which none leads to"):
            sona.iit3(*arguments)
        return
    result = sona.iit3(*arguments)
    if "timeout_s" in record:  # the reference has no value
        assert result.phi > 0
        return
    if "phi_precision12" in record:
        assert result.phi == pytest.approx(record["phi_precision12"], rel=0, abs=1e-9)
    assert result.phi == pytest.approx(record["phi"], rel=0, abs=2e-6)
    if record["cut"] is None:
        assert result.ties == ()
    else:
        assert tuple(map(tuple, record["cut"])) in result.ties  # which of them is a matter of order
    got = [(c.mechanism, c.cause_purview, c.effect_purview) for c in result.concepts]
    names = ("mechanism", "cause_purview", "effect_purview")
    assert got == [tuple(tuple(concept[name]) for name in names) for concept in record["concepts"]]
    for name in ("phi", "cause_phi", "effect_phi"):
        want = [concept[name] for concept in record["concepts"]]
        assert [getattr(c, name) for c in result.concepts] == pytest.approx(want, rel=0, abs=2e-6)


@pytest.mark.parametrize("record", cases("major_complexes"))
def test_reference_complexes(record: dict[str, Any]) -> None:
    network = REFERENCE["networks"][record["network"]]
    found = major_complex(network["tpm_state_by_node"], network["cm"], record["state"])
    assert found is not None
    assert found.nodes == tuple(record["major_complex"])
    assert found.phi == pytest.approx(record["phi"], rel=0, abs=2e-6)


# ---- values that stand here ----


def states(n: int) -> Array:
    """(2^n, n) node i in state s"""
    return np.arange(1 << n)[:, None] >> np.arange(n) & 1


def gates(*rules: Callable[[Nodes], float]) -> Array:
    """State-by-node from what each node does after a state."""
    return np.array([[float(rule(tuple(s))) for rule in rules] for s in states(len(rules)).tolist()])


def automaton(rule: int, n: int) -> Array:
    """A ring of cells under a rule of Wolfram's numbering."""
    s = states(n)
    return (rule >> (4 * np.roll(s, 1, axis=1) + 2 * s + np.roll(s, -1, axis=1)) & 1).astype(float)


BASIC = gates(lambda s: s[1] | s[2], lambda s: s[2], lambda s: s[0] ^ s[1])
XOR = gates(lambda s: s[1] ^ s[2], lambda s: s[0] ^ s[2], lambda s: s[0] ^ s[1])
FIG4 = gates(lambda s: s[1] | s[2], lambda s: s[0] & s[2], lambda s: s[0] ^ s[1])
MAJORITY = gates(*[lambda s: sum(s) >= 2] * 3)
COPY = gates(lambda s: s[1], lambda s: s[0])
# Two pairs; each switches the other on for sure when both of its nodes are, else by chance.
PAIRS = gates(*[lambda s: 1 if s[2] & s[3] else 0.3] * 2, *[lambda s: 1 if s[0] & s[1] else 0.3] * 2)


@pytest.mark.parametrize(
    ("tpm", "state", "phi", "concepts"),
    [
        pytest.param(BASIC, (1, 0, 0), 2.3125, 4, id="basic"),
        pytest.param(BASIC, (1, 0, 1), 0.6875, 3, id="basic, another state"),
        pytest.param(XOR, (0, 0, 0), 1.875, 3, id="xor"),
        pytest.param(FIG4, (1, 0, 0), 23 / 12, 6, id="figure 4"),
        pytest.param(FIG4, (0, 0, 0), 2 / 3, 4, id="figure 4, another state"),
        pytest.param(automaton(110, 3), (1, 0, 1), 1.1000160256410256, 7, id="rule 110, larger purviews"),
        pytest.param(automaton(110, 3), (0, 0, 0), 1.357083333333, 6, id="rule 110, all 0"),
        pytest.param(automaton(154, 5), (1, 1, 1, 1, 1), 9.4375, 21, id="rule 154"),
        pytest.param(MAJORITY, (0, 0, 0), 0.674444444444, 6, id="majority"),
        pytest.param(COPY, (0, 0), 1.0, 2, id="copy"),
        pytest.param(PAIRS, (1, 1, 1, 1), 0.974409433305, None, id="pairs"),
        pytest.param(PAIRS, (0, 0, 0, 0), 0.113888888889, None, id="pairs, all 0"),
    ],
)
def test_worked_values(tpm: Array, state: Nodes, phi: float, concepts: int | None) -> None:
    result = sona.iit3(tpm, None, state)
    assert result.phi == pytest.approx(phi, rel=0, abs=1e-9)
    assert float(result) == result.phi
    assert concepts in (None, len(result.concepts))
    assert all(sorted(a + b) == list(range(len(state))) for a, b in result.ties)
    assert result.cut == result.ties[0]


def test_symmetric_systems_tie() -> None:
    assert set(sona.iit3(XOR, None, (0, 0, 0)).ties) == {(a, b) for a, b in bipartitions((0, 1, 2)) if a and b}


# ---- a slow oracle ----
# Every repertoire is unfolded: a distribution over all 2^n states, uniform (cause) or unconstrained (effect) outside of its purview.


def without(tpm: Array, node: int, inputs: Nodes) -> Array:
    """Chance of a node after each state, where these inputs are noise."""
    chance = tpm[:, node]
    for i in inputs:
        chance = (chance + chance[np.arange(len(chance)) ^ 1 << i]) / 2
    return chance


def severed(tpm: Array, cut: tuple[Nodes, Nodes]) -> Array:
    return np.stack([without(tpm, j, cut[0] if j in cut[1] else ()) for j in range(tpm.shape[1])], axis=1)


def causes(tpm: Array, state: Nodes, mechanism: Nodes, purview: Nodes) -> Array:
    outside = tuple(set(range(len(state))) - set(purview))
    chance = np.ones(len(tpm))
    for i in mechanism:
        on = without(tpm, i, outside)
        chance = chance * (on if state[i] else 1 - on)
    return chance / chance.sum()


def effects(tpm: Array, state: Nodes, parts: list[tuple[Nodes, Nodes]]) -> Array:
    """Product over the nodes of the purviews, each after its part's mechanism."""
    s = states(len(state))
    chance = np.ones(len(tpm))
    after = {j: mechanism for mechanism, purview in parts for j in purview}
    for j in range(len(state)):
        rows = [k for k in range(len(s)) if all(s[k, i] == state[i] for i in after.get(j, ()))]
        on = tpm[rows, j].mean()
        chance = chance * np.where(s[:, j], on, 1 - on)
    return chance


def joined(tpm: Array, state: Nodes, parts: list[tuple[Nodes, Nodes]]) -> Array:
    """Cause repertoires of parts, independent of each other."""
    one, other = (causes(tpm, state, *part) for part in parts)
    return one * other * len(tpm)


def bipartitions(nodes: Nodes) -> Iterator[tuple[Nodes, Nodes]]:
    for size in range(len(nodes) + 1):
        for part in combinations(nodes, size):
            yield part, tuple(i for i in nodes if i not in part)


def transport(supply: Array, demand: Array, cost: Array) -> float:
    """Least cost by a general solver of linear programs."""
    rows, cols = cost.shape
    equal = np.vstack([np.kron(np.eye(rows), np.ones(cols)), np.kron(np.ones(rows), np.eye(cols))])
    options = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    solved = linprog(cost.ravel(), A_eq=equal[:-1], b_eq=np.concatenate([supply, demand])[:-1], method="highs-ds", options=options)
    assert solved.success, solved.message
    return float(solved.fun)


def distance(p: Array, q: Array) -> float:
    return 0.0 if np.abs(p - q).max() < 1e-14 else solved_distance(tuple(p.round(15)), tuple(q.round(15)))


@cache
def solved_distance(p: tuple[float, ...], q: tuple[float, ...]) -> float:
    index = np.arange(len(p))
    return transport(np.array(p), np.array(q), np.bitwise_count(index[:, None] ^ index).astype(float))


def least(tpm: Array, state: Nodes, mechanism: Nodes, purview: Nodes, *, past: bool) -> float:
    """phi over every bipartition."""
    whole = causes(tpm, state, mechanism, purview) if past else effects(tpm, state, [(mechanism, purview)])
    found = np.inf
    for m, z in product(bipartitions(mechanism), bipartitions(purview)):
        parts = list(zip(m, z, strict=True))
        if ((), ()) in parts:
            continue
        other = joined(tpm, state, parts) if past else effects(tpm, state, parts)
        found = min(found, distance(whole, other))
        if found == 0:
            break
    return float(found)


def core(tpm: Array, state: Nodes, mechanism: Nodes, *, past: bool) -> tuple[float, Nodes]:
    best: tuple[float, Nodes] = (0.0, ())
    for size in range(len(state), 0, -1):
        for purview in combinations(range(len(state)), size):
            phi = least(tpm, state, mechanism, purview, past=past)
            if phi > best[0] + 1e-9:
                best = phi, purview
    return best


def constellation(tpm: Array, state: Nodes) -> list[tuple[float, Nodes, Array, Array]]:
    """(phi, mechanism, cause, effect) of each concept."""
    found = []
    for size in range(1, len(state) + 1):
        for mechanism in combinations(range(len(state)), size):
            (back, before), (on, after) = (core(tpm, state, mechanism, past=past) for past in (True, False))
            if min(back, on) > 0:
                cause, effect = causes(tpm, state, mechanism, before), effects(tpm, state, [(mechanism, after)])
                found.append((min(back, on), mechanism, cause, effect))
    return found


def big_phi(tpm: Array, state: Nodes) -> float:
    whole = constellation(tpm, state)
    null = (np.full(len(tpm), 1 / len(tpm)), effects(tpm, state, []))
    best = np.inf
    for a, b in bipartitions(tuple(range(len(state)))):
        if not a or not b:
            continue
        rest = constellation(severed(tpm, (a, b)), state)
        supply = np.array([phi for phi, *_ in whole] + [max(sum(c[0] for c in rest) - sum(c[0] for c in whole), 0)])
        demand = np.array([phi for phi, *_ in rest] + [max(sum(c[0] for c in whole) - sum(c[0] for c in rest), 0)])
        left, right = [(c, e) for *_, c, e in whole] + [null], [(c, e) for *_, c, e in rest] + [null]
        cost = np.array([[distance(c, d) + distance(e, f) for d, f in right] for c, e in left])
        best = min(best, transport(supply, demand, cost))
    return float(best)


def random_tpm(rng: np.random.Generator, n: int, levels: int, cm: Array | None = None) -> Array:
    """Chances in steps of 1 / levels; a node depends on no other than cm says."""
    tpm = rng.integers(0, levels + 1, (1 << n, n)) / levels
    for j in range(n):
        inputs = sum(1 << i for i in range(n) if cm is None or cm[i, j])
        tpm[:, j] = tpm[np.arange(1 << n) & inputs, j]
    return tpm


def after_some_state(rng: np.random.Generator, tpm: Array) -> Nodes:
    return tuple((rng.random(tpm.shape[1]) < tpm[rng.integers(len(tpm))]).astype(int).tolist())


@pytest.mark.parametrize(("n", "levels", "seed"), [*[(2, 4, seed) for seed in range(6)], (3, 1, 10), (3, 1, 23), (3, 2, 10)])
def test_phi_is_that_of_the_oracle(n: int, levels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    cm = np.eye(n, k=1) + np.eye(n, k=1 - n) + (rng.random((n, n)) < 0.2) > 0 if n == 3 else None
    tpm = random_tpm(rng, n, levels, cm)
    state = after_some_state(rng, tpm)
    result = sona.iit3(tpm, None, state)
    assert result.phi == pytest.approx(big_phi(tpm, state) if result.concepts else 0, rel=0, abs=1e-9)
    want = [(mechanism, phi) for phi, mechanism, *_ in constellation(tpm, state)]
    assert [(c.mechanism, pytest.approx(c.phi, abs=1e-9)) for c in result.concepts] == want


def folded(unfolded: Array, purview: Nodes) -> Array:
    n = len(unfolded).bit_length() - 1
    index = states(n)[:, purview] @ (1 << np.arange(len(purview)))
    return np.bincount(index, unfolded)


def check_concept(tpm: Array, state: Nodes, c: Concept) -> None:
    """Its repertoires and what its partitions cost."""
    past, future = causes(tpm, state, c.mechanism, c.cause_purview), effects(tpm, state, [(c.mechanism, c.effect_purview)])
    np.testing.assert_allclose(c.cause_repertoire, folded(past, c.cause_purview), rtol=0, atol=1e-14)
    np.testing.assert_allclose(c.effect_repertoire, folded(future, c.effect_purview), rtol=0, atol=1e-14)
    for parts, purview in ((c.cause_partition, c.cause_purview), (c.effect_partition, c.effect_purview)):
        assert [tuple(sorted(a + b)) for a, b in zip(*parts, strict=True)] == [c.mechanism, purview]
        assert ((), ()) not in parts
    apart = joined(tpm, state, list(c.cause_partition))
    assert _iit3.distance(past, apart) == pytest.approx(c.cause_phi, abs=1e-12)
    assert _iit3.distance(future, effects(tpm, state, list(c.effect_partition))) == pytest.approx(c.effect_phi, abs=1e-12)
    assert c.phi == min(c.cause_phi, c.effect_phi) > 0


@pytest.mark.parametrize(("n", "levels", "seed"), [(3, 4, 0), (3, 1, 1), (4, 1, 2), (4, 10**6, 3)])
def test_repertoires_and_partitions_of_concepts(n: int, levels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tpm = random_tpm(rng, n, levels)
    state = after_some_state(rng, tpm)
    concepts = sona.iit3(tpm, None, state).concepts
    assert concepts
    for c in concepts:
        check_concept(tpm, state, c)


@pytest.mark.parametrize("k", range(1, 6))
def test_distance_is_the_linear_programs(k: int) -> None:
    rng = np.random.default_rng(k)
    for kept in (1.0, 0.5, 0.2):
        for _ in range(8):
            p, q = (rng.random(1 << k) * (rng.random(1 << k) < kept) for _ in range(2))
            p[0], q[-1] = p[0] + 0.01, q[-1] + 0.01
            p, q = p / p.sum(), q / q.sum()
            assert _iit3.distance(p, q) == pytest.approx(distance(p, q), abs=1e-8)  # its constraints hold to 1e-10 each
            assert _iit3.distance(p, q) == pytest.approx(_iit3.distance(q, p), abs=1e-12)
            assert _iit3.distance(p, p) == 0


def test_distances_are_between_states_of_the_same_nodes() -> None:
    for p, q in ((np.ones(3) / 3, np.ones(3) / 3), (np.ones(2) / 2, np.ones(4) / 4), (np.ones(0), np.ones(0)), (np.ones(256) / 256,) * 2):
        with pytest.raises(SonaValueError):
            _iit3.distance(p, q)


# ---- what must not matter, and what must ----


@pytest.mark.parametrize("seed", range(12))
def test_names_of_nodes_and_of_their_states_do_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 3 if seed < 8 else 4
    tpm = random_tpm(rng, n, 10**6 if seed % 2 else 1)
    state = after_some_state(rng, tpm)
    result = sona.iit3(tpm, None, state)
    order, flip = rng.permutation(n), rng.integers(0, 2, n)
    back = np.argsort(order)
    rows = states(n)[:, back] ^ flip  # new node k is node order[k]; node i is swapped where flip[i]
    moved = tpm[rows @ (1 << np.arange(n))]
    moved = np.where(flip, 1 - moved, moved)[:, order]
    other = sona.iit3(moved, None, [state[i] ^ flip[i] for i in order])
    assert other.phi == pytest.approx(result.phi, rel=0, abs=1e-11)
    if seed % 2:  # without ties
        assert {frozenset(order[i] for i in side) for side in other.cut or ()} == {frozenset(side) for side in result.cut or ()}
        assert {tuple(sorted(order[i] for i in c.mechanism)): pytest.approx(c.phi, abs=1e-11) for c in other.concepts} == {
            c.mechanism: c.phi for c in result.concepts
        }


@pytest.mark.parametrize("cm", [True, False])
@pytest.mark.parametrize(
    "connections", [np.eye(4, k=1), np.triu(np.ones((4, 4)), 1), np.kron(np.eye(2), [[0, 1], [1, 0]])], ids=["chain", "forward", "pairs"]
)
def test_what_is_not_strongly_connected_is_not_integrated(connections: Array, cm: bool) -> None:
    rng = np.random.default_rng(4)
    tpm = random_tpm(rng, 4, 10, connections)
    state = after_some_state(rng, tpm)
    result = sona.iit3(tpm, connections if cm else None, state)
    assert result.phi == 0
    if cm:
        assert (result.cut, result.concepts) == (None, ())


def test_one_node_is_not_integrated() -> None:
    assert sona.iit3([[0], [1]], None, [1]).phi == 0


def test_a_state_by_state_matrix_is_the_same_system() -> None:
    rng = np.random.default_rng(5)
    tpm = random_tpm(rng, 3, 10)
    s = states(3)
    whole = np.prod(np.where(s, tpm[:, None], 1 - tpm[:, None]), axis=2)
    assert sona.iit3(whole, None, (0, 1, 0)).phi == pytest.approx(sona.iit3(tpm, None, (0, 1, 0)).phi, abs=1e-12)


def test_rounding_makes_no_dependence_and_no_work() -> None:
    """A sparse system of seven nodes: as a state-by-state matrix, and with noise where cm has no connection."""
    s, before = states(7), np.eye(7, k=1) + np.eye(7, k=-6)
    tpm = np.where(np.roll(s, 1, axis=1), 0.9, 0.15)
    want = sona.iit3(tpm, before, (0,) * 7)
    whole = np.prod(np.where(s, tpm[:, None], 1 - tpm[:, None]), axis=2)
    noise = np.random.default_rng(8).uniform(-1e-13, 1e-13, tpm.shape)
    for system, cm in ((whole, None), (tpm + noise, before)):
        found = sona.iit3(system, cm, (0,) * 7)
        assert found.phi == pytest.approx(want.phi, abs=1e-10)
        assert [c.mechanism for c in found.concepts] == [c.mechanism for c in want.concepts]


@pytest.mark.parametrize("change", [np.asfortranarray, lambda a: a.astype(">f4"), lambda a: np.repeat(a, 2, 1)[:, ::2], np.ma.asarray])
def test_arrays_of_any_layout_and_type(change: Callable[[Array], Array]) -> None:
    cm = np.array([[0.0, 0, 1], [1, 0, 1], [1, 1, 0]])
    for nodes in (None, (0, 1, 2)):
        assert sona.iit3(change(BASIC), change(cm), (1, 0, 0), nodes=nodes).phi == sona.iit3(BASIC, cm, (1, 0, 0)).phi
    assert major_complex(change(BASIC), change(cm), (1, 0, 0)) is not None


def test_a_part_sees_the_others_as_they_are() -> None:
    rng = np.random.default_rng(6)
    tpm = random_tpm(rng, 4, 10)
    rows = [k for k, s in enumerate(states(4).tolist()) if s[1] == 1]
    alone = sona.iit3(tpm[rows][:, [0, 2, 3]], None, (0, 1, 0))
    part = sona.iit3(tpm, None, (0, 1, 1, 0), nodes=[3, 0, 2])
    assert part.phi == alone.phi > 0
    assert part.nodes == (0, 2, 3)
    assert part.state == (0, 1, 0)
    assert [c.mechanism for c in part.concepts] == [tuple((0, 2, 3)[i] for i in c.mechanism) for c in alone.concepts]


def test_major_complex_is_the_best_part() -> None:
    rng = np.random.default_rng(7)
    found = 0
    for _ in range(6):
        cm = rng.random((4, 4)) < 0.5
        tpm = random_tpm(rng, 4, 10**6, cm)
        state = after_some_state(rng, tpm)
        best = major_complex(tpm, cm, state)
        values = {nodes: sona.iit3(tpm, cm, state, nodes=nodes).phi for k in range(1, 5) for nodes in combinations(range(4), k)}
        assert max(values.values()) == pytest.approx(best.phi if best else 0, abs=1e-12)
        if best is not None:
            found += 1
            assert values[best.nodes] == best.phi
    assert found > 2


def test_major_complex_of_nothing() -> None:
    assert major_complex(np.zeros((8, 3)), None, (0, 0, 0)) is None


def test_six_nodes_and_a_sparse_seven() -> None:
    ring = np.roll(np.eye(7), 1, axis=1)
    assert sona.iit3(automaton(90, 6), None, (0,) * 6).phi > 0
    assert sona.iit3(np.roll(states(7), 1, axis=1), ring, (0, 1, 1, 0, 0, 0, 0)).phi > 0


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer that sends signals")
def test_a_signal_ends_a_long_search() -> None:
    s = states(6)
    tpm = np.clip(0.8 * (np.roll(s, 1, axis=1) & np.roll(s, 2, axis=1)) + 0.1 * s + 0.05, 0, 1)
    begun = time.perf_counter()
    sona.iit3(tpm, None, (0,) * 6)
    whole, before = time.perf_counter() - begun, signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, whole / 4)
        begun = time.perf_counter()
        with pytest.raises(KeyboardInterrupt):
            sona.iit3(tpm, None, (0,) * 6)
        assert time.perf_counter() - begun < 0.7 * whole
    finally:
        signal.signal(signal.SIGALRM, before)


def test_threads_find_the_same() -> None:
    tpm = automaton(110, 3)
    want = sona.iit3(tpm, None, (1, 0, 1)).phi
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: sona.iit3(tpm, None, (1, 0, 1)).phi, range(64))) == {want}


# ---- bad input ----


def changed(tpm: Array, value: float) -> Array:
    tpm = tpm.copy()
    tpm[2, 1] = value
    return tpm


CORRELATED = np.kron(np.ones((4, 1)), [[0.5, 0, 0, 0.5]])


@pytest.mark.parametrize(
    ("tpm", "cm", "state", "message"),
    [
        (BASIC[:7], None, (1, 0, 0), r"tpm: expected shape \(2\^n, n\) or \(2\^n, 2\^n\) for n nodes, got \(7, 3\)"),
        (BASIC[:, :2], None, (1, 0, 0), r"got \(8, 2\)"),
        (BASIC.reshape(2, 2, 2, 3), None, (1, 0, 0), "tpm: expected shape"),
        (np.zeros((0, 0)), None, (), "tpm: expected shape"),
        (np.ones((1, 1)), None, (), "tpm: expected shape"),
        (changed(BASIC, 1.5), None, (1, 0, 0), r"tpm: expected probabilities in \[0, 1\], got 1.5"),
        (changed(BASIC, -0.1), None, (1, 0, 0), r"got -0.1"),
        (changed(BASIC, np.nan), None, (1, 0, 0), "tpm: expected finite numbers"),
        (changed(BASIC, np.inf), None, (1, 0, 0), "tpm: expected finite numbers"),
        (np.full((4, 4), 0.2), None, (0, 0), "tpm: expected state-by-state rows that sum to 1, got 0.8 in row 0"),
        (CORRELATED, None, (0, 0), "tpm: expected nodes that are independent"),
        (BASIC, np.ones((2, 2)), (1, 0, 0), r"cm: expected shape \(3, 3\), got \(2, 2\)"),
        (BASIC, np.full((3, 3), 2), (1, 0, 0), "cm: expected 0 or 1"),
        (BASIC, np.full((3, 3), np.nan), (1, 0, 0), "cm: expected finite numbers"),
        (BASIC, [[0, 0, 1], [1, 0, 1], [1, 0, 0]], (1, 0, 0), "cm: expected a connection from node 2 to node 1"),
        (BASIC, None, (1, 0), r"state: expected 3 nodes, got shape \(2,\)"),
        (BASIC, None, (1, 0, 2), "state: expected 0 or 1 for each node"),
        (BASIC, None, 4, r"state: expected 3 nodes, got shape \(\)"),
        (BASIC, None, (1, 0, np.nan), "state: expected finite numbers"),
        (BASIC, None, (0, 1, 0), r"state: expected one that some state leads to, got \(0, 1, 0\)"),
        (np.full((256, 8), 0.5), None, (0,) * 8, "tpm: expected at most 7 nodes, got 8"),
    ],
)
def test_bad_input_says_what_was_expected(tpm: Any, cm: Any, state: Any, message: str) -> None:
    with pytest.raises(SonaValueError, match=message):
        sona.iit3(tpm, cm, state)


@pytest.mark.parametrize("search", [sona.iit3, major_complex])
def test_too_much_work_is_refused_before_it_starts(search: Callable[..., Any]) -> None:
    tpm = np.random.default_rng(0).random((128, 7))
    with pytest.raises(SonaValueError, match=r"tpm: expected at most 1.0e\+11 steps of work"):
        search(tpm, None, (0,) * 7)


@pytest.mark.parametrize("value", ["tpm", [["a", "b"]] * 4, [[1, 2], [3]], np.zeros((4, 2), complex)])
def test_what_is_no_array_of_numbers(value: Any) -> None:
    with pytest.raises(SonaTypeError, match="expected an array of"):
        sona.iit3(value, None, (0, 0))
    with pytest.raises(SonaTypeError, match="expected an array of"):
        sona.iit3(COPY, value, (0, 0))
    with pytest.raises(SonaTypeError, match="expected an array of"):
        sona.iit3(COPY, None, value)


@pytest.mark.parametrize(("nodes", "error"), [([], SonaValueError), ([3], SonaValueError), ([0, -1], SonaValueError), (2, SonaTypeError)])
def test_a_part_of_something_else(nodes: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="nodes: expected some of 0 to 2"):
        sona.iit3(BASIC, None, (1, 0, 0), nodes=nodes)


@pytest.mark.parametrize("node", ["a", 0.5, None])
def test_a_node_is_an_integer(node: Any) -> None:
    with pytest.raises(SonaTypeError, match="nodes: expected some of 0 to 2"):
        sona.iit3(BASIC, None, (1, 0, 0), nodes=[0, node])


def test_repertoires_are_read_only() -> None:
    concept = sona.iit3(BASIC, None, (1, 0, 0)).concepts[0]
    with pytest.raises(ValueError, match="read-only"):
        concept.cause_repertoire[0] = 1


def test_the_document_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    document = (Path(__file__).parents[1] / "docs/iit3.md").read_text(encoding="utf-8")
    code, printed = (document.split(f"```{kind}\n")[1].split("```")[0] for kind in ("python", "text"))
    exec(compile(code, "docs/iit3.md", "exec"), {})
    assert capsys.readouterr().out == printed
