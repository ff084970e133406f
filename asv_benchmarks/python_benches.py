"""What the library costs a Python caller, against what the caller would write without it."""

from __future__ import annotations

import queue
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from statistics import median
from textwrap import dedent
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from row import Row, faster, missing, near, seconds, within
from scipy.linalg.blas import saxpy, sdot, sgemm
from sklearn.cluster import KMeans
from timing import Code, interleave

from sona import Adapter, BaseLoRA, Instant, MicroLoRA, Ring, Router, SonaConfig, SonaEngine
from sona._kernels import Kernels
from sona.demo.linucb import LinUCB
from sona.ewc import EwcPlusPlus, LowRankEwc
from sona.loops.background import BackgroundLoopConfig
from sona.loops.gate import GateConfig
from sona.patterns import PatternConfig, ReasoningBank
from sona.patterns.clusters import one_thread

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Effort:
    """How long to measure: rounds of a comparison, requests of a stream, interpreter starts."""

    rounds: int = 31
    requests: int = 4000
    starts: int = 7


QUICK = Effort(rounds=7, requests=600, starts=3)


def normal(*shape: int, seed: int = 0) -> F32:
    """Rows of about unit norm."""
    rows: F32 = (np.random.default_rng(seed).normal(size=shape) / np.sqrt(shape[-1])).astype(np.float32)
    return rows


def at_each_place(x: F32, y: F32) -> Iterator[tuple[F32, F32]]:
    """Copies of two vectors that start at each of the places in a cache line where numpy puts arrays: it aligns to 16 bytes."""
    for offsets in ((0, 0), (16, 16), (32, 32), (48, 48), (0, 16), (16, 32), (32, 48), (48, 0)):
        pair = []
        for vector, offset in zip((x, y), offsets, strict=True):
            room = np.empty(vector.nbytes + 128, np.uint8)
            start = -room.ctypes.data % 64 + offset
            pair.append(room[start : start + vector.nbytes].view(np.float32))
            pair[-1][:] = vector
        yield pair[0], pair[1]


def optional(name: str) -> ModuleType | None:
    return import_module(name) if find_spec(name) else None


def empty_call() -> Callable[[Any, Any], None]:
    """A Cython function of two arguments that does nothing, compiled now: the floor of a call from Python."""
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory, "empty_call.pyx")
        source.write_text("# cython: language_level=3, binding=False\ndef call(x, y):\n    pass\n")
        subprocess.run([sys.executable, "-m", "Cython.Build.Cythonize", "-i", "-q", str(source)], check=True, capture_output=True)
        path = source.with_name("empty_call" + sysconfig.get_config_var("EXT_SUFFIX"))
        spec = spec_from_file_location("empty_call", path)
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
    call: Callable[[Any, Any], None] = module.call
    return call


def micro_forward(effort: Effort) -> Iterator[Row]:
    d, what, case = 256, "micro forward from Python", "d=256 r=1, in place"
    down, up, x, y = normal(4, d)[:, None]
    micro = MicroLoRA(d, rank=1)
    micro.assign(down, 1e-3 * up, base=0)
    names = {"x": x[0], "y": y[0], "a": down[0], "b": up[0]}
    codes: dict[str, Code | list[Code]] = {
        "sona": [Code("forward(x, y)", {"forward": micro.forward, "x": a, "y": b}) for a, b in at_each_place(x[0], y[0])],
        "empty": Code("call(x, y)", {**names, "call": empty_call()}),
        "numpy": Code(
            "np.add(y, s * ((x @ A) @ B), out=y)", {"np": np, "x": x, "y": y.copy(), "A": down.T.copy(), "B": up, "s": np.float32(1e-3)}
        ),
        "blas": Code("saxpy(b, y, a=1e-3 * sdot(x, a))", {**names, "y": y[0].copy(), "saxpy": saxpy, "sdot": sdot}),
    }
    torch: Any = optional("torch")
    if torch:
        torch.set_num_threads(1)
        tensors = {name: torch.from_numpy(array.copy()) for name, array in {"x": x, "y": y, "A": down, "B": up.T}.items()}
        codes["torch"] = Code("y.add_(F.linear(F.linear(x, A), B), alpha=1e-3)", {**tensors, "F": torch.nn.functional})
    rounds = interleave(codes, rounds=effort.rounds)
    own = rounds.median("sona")
    yield within(what, case, own, 100e-9)
    yield near(what, case, own, "empty Cython call of 2 arguments", rounds.ratio("sona", "empty"), 3)
    yield faster(what, case, own, "numpy, two matmuls", rounds.ratio("numpy", "sona"), 40)
    yield faster(what, case, own, "scipy sdot + saxpy", rounds.ratio("blas", "sona"), 6)
    yield faster(what, case, own, "torch", rounds.ratio("torch", "sona"), 100) if torch else missing(what, case, own, "torch")


def base_forward(effort: Effort) -> Iterator[Row]:
    what, layers, rank = "base forward, one call", 12, 8
    torch: Any = optional("torch")
    for d in (256, 1024):
        case = f"d={d} rank {rank} x {layers} layers"
        base = BaseLoRA(d, rank, layers)
        down, up = normal(layers, rank, d), 1e-3 * normal(layers, rank, d, seed=1)
        for layer, a, b in zip(base.layers, down, up, strict=True):
            layer.assign(a, b)
        x, y = normal(layers, d, seed=2), normal(layers, d, seed=3)
        A = np.ascontiguousarray(down.transpose(0, 2, 1))
        codes = {
            "sona": Code("forward(x, y)", {"forward": base.forward, "x": x, "y": y}),
            "numpy": Code(
                "np.add(y, np.matmul(np.matmul(x, A), B), out=y)", {"x": x[:, None], "y": y[:, None].copy(), "A": A, "B": up, "np": np}
            ),
        }
        if torch:
            tensors = {name: torch.from_numpy(array.copy()) for name, array in {"x": x[:, None], "y": y[:, None], "A": A, "B": up}.items()}
            codes["torch"] = Code("y.add_(bmm(bmm(x, A), B))", {**tensors, "bmm": torch.bmm})
        rounds = interleave(codes, rounds=effort.rounds)
        own = rounds.median("sona")
        yield faster(what, case, own, "numpy batched matmul", rounds.ratio("numpy", "sona"), 1.7)
        yield faster(what, case, own, "torch.bmm", rounds.ratio("torch", "sona"), 3) if torch else missing(what, case, own, "torch")


def batch_forward(effort: Effort) -> Iterator[Row]:
    for d in (256, 1024):
        for rank in (1, 2):
            for n in (32, 256):
                adapter = Adapter(d, rank=rank)
                down, up, x, y = normal(rank, d), 1e-3 * normal(rank, d, seed=1), normal(n, d, seed=2), normal(n, d, seed=3)
                adapter.assign(down, up)
                # Transposed views are Fortran order, so BLAS copies nothing: y^T += up^T (down x^T)
                peer = {"sgemm": sgemm, "x": x.T, "y": y.copy().T, "A": down.T, "B": up.T}
                codes = {
                    "sona": Code("forward(x, y)", {"forward": adapter.forward_batch, "x": x, "y": y}),
                    "sgemm": Code("sgemm(1, B, sgemm(1, A, x, trans_a=1), beta=1, c=y, overwrite_c=1)", peer),
                }
                rounds = interleave(codes, rounds=effort.rounds)
                case = f"{n} x {d} r={rank}"
                short = n == 256
                yield faster(
                    "batch forward", case, rounds.median("sona"), "scipy sgemm pair", rounds.ratio("sgemm", "sona"), 1.2, short=short
                )


def instant_step(effort: Effort) -> Iterator[Row]:
    d = 384
    xs, vs = normal(64, d), 10 * normal(64, d, seed=1)
    for kind in ("identity", "full"):
        instant, adapter = Instant(d, precondition=kind, actions=20), Adapter(d, rank=16, rank_max=16)
        loop = "for x, v in pairs: step(adapter, x, v, 1.0, 0.4)"
        names = {"step": instant.step, "adapter": adapter, "pairs": list(zip(xs, vs, strict=True))}
        own = interleave({"sona": Code(loop, names)}, rounds=effort.rounds).median("sona") / len(xs)
        yield within("instant step from Python", f"d={d} {kind}, folded into rank 16", own, short=False)


def stream(router: Router, xs: F32, labels: NDArray[np.int64]) -> tuple[list[float], list[float]]:
    """Seconds of each route and of each feedback; the right arm is the one that the label names."""
    tick = time.perf_counter
    routed, learned = [], []
    for x, label in zip(xs, labels.tolist(), strict=True):
        start = tick()
        decision = router.route(x)
        chosen = tick()
        reward = float(decision.index == label)
        asked = tick()
        router.feedback(decision.id, reward)
        routed.append(chosen - start)
        learned.append(tick() - asked)
    return routed, learned


def routers(effort: Effort) -> Iterator[Row]:
    K, d = 20, 384
    arms, centres = normal(K, d), normal(K, d, seed=1)
    labels = np.random.default_rng(2).integers(K, size=2 * effort.requests)
    xs = centres[labels] + 0.5 * normal(len(labels), d, seed=3)
    case = f"d={d}, {K} arms, store"
    for kind in ("identity", "full"):
        with tempfile.TemporaryDirectory() as directory, Router(arms, store=Path(directory, "sona.db"), precondition=kind) as router:
            stream(router, xs[: effort.requests], labels[: effort.requests])  # the guard's older copy joins on the way
            routed, learned = stream(router, xs[effort.requests :], labels[effort.requests :])
            peer = LinUCB(arms, alpha=0.1, ridge=1.0)
            few = list(xs[:16])
            names = {"route": router.route, "feedback": router.feedback, "peer": peer, "xs": few}
            codes = {
                "sona": Code("for x in xs: route(x)", names),
                "linucb": Code("for x in xs: peer.route(x)", names),
                "sona, learning": Code("for x in xs: feedback(route(x).id, 1.0)", names),
                "linucb, learning": Code("for x in xs: peer.feedback(peer.route(x), 1.0)", names),
            }
            rounds = interleave(codes, rounds=effort.rounds, clock=time.thread_time)  # without the store's own thread
        p50, p99 = np.percentile(routed, [50, 99]).tolist()
        numpy = "LinUCB in numpy"
        if kind == "identity":
            yield within("Router.route, median", case, p50, 5e-6)
            yield within("Router.route, 99th percentile", case, p99)
            yield faster("Router.route", case, rounds.median("sona") / len(few), numpy, rounds.ratio("linucb", "sona"), 50)
        p50, p99 = np.percentile(learned, [50, 99]).tolist()
        learning = f"{case}, {kind}"
        yield within("Router.feedback, median", learning, p50)
        yield within("Router.feedback, 99th percentile", learning, p99)
        ratio = rounds.ratio("linucb, learning", "sona, learning")
        yield faster("Router.route + feedback", learning, rounds.median("sona, learning") / len(few), numpy, ratio)


def options(effort: Effort) -> Iterator[Row]:
    """What a pool, retrieval and a trial add to a request and to a reward."""
    K, d = 20, 384
    arms, centres = normal(K, d), normal(K, d, seed=1)
    labels = np.random.default_rng(2).integers(K, size=2 * effort.requests)
    xs = centres[labels] + 0.5 * normal(len(labels), d, seed=3)
    settings: dict[str, dict[str, Any]] = {"pool": {"pool": True}, "retrieval=4000": {"retrieval": 4000}, "on trial": {}}
    for name, setting in settings.items():
        router = Router(arms, background=BackgroundLoopConfig(gate=GateConfig(n_min=1_000_000, n_max=1_000_000)), **setting)
        stream(router, xs[: effort.requests], labels[: effort.requests])
        if name == "on trial":
            router.background_learn()
        routed, learned = stream(router, xs[effort.requests :], labels[effort.requests :])
        case = f"d={d}, {K} arms, no store, full, {name}"
        yield within("Router.route, median", case, float(np.median(routed)))
        yield within("Router.feedback, median", case, float(np.median(learned)))


def elementwise(effort: Effort) -> Iterator[Row]:
    k = Kernels()
    for n in (1_000, 10_000, 100_000):
        g, w, anchor, work, f = (np.sqrt(n, dtype=np.float32) * normal(n, seed=seed) for seed in range(5))
        f = np.abs(f)
        ufuncs = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "one": np.float32(1), "tiny": np.float32(1e-9)}
        names = {**ufuncs, "k": k, "f": f, "g": g, "w": w, "anchor": anchor, "t": work, "c": np.float32(1e-3)}
        forms = {  # the same operations without temporaries
            "Fisher update": ("k.fisher_update(f, g, 1e-3)", "mul(g, g, out=t); sub(t, f, out=t); mul(t, c, out=t); add(f, t, out=f)", 2.5),
            "EWC pull": (
                "k.ewc_pull(g, f, w, anchor, 1e-3)",
                "sub(w, anchor, out=t); mul(t, f, out=t); mul(t, c, out=t); sub(g, t, out=g)",
                1.8,
            ),
            "EWC scale": ("k.ewc_scale(g, f, 1e-9)", "mul(f, tiny, out=t); add(t, one, out=t); div(g, t, out=g)", 2.5),
        }
        for what, (own, peer, at_least) in forms.items():
            fresh = {**names, "g": g.copy(), "f": f.copy()}
            rounds = interleave(
                {"sona": Code(own, fresh), "numpy": Code(peer, {**fresh, "g": g.copy(), "f": f.copy()})}, rounds=effort.rounds
            )
            goal = 10 if n == 1_000 else at_least
            yield faster(what, f"n={n}", rounds.median("sona"), "numpy, out=", rounds.ratio("numpy", "sona"), goal, short=n == 10_000)


def consolidation(effort: Effort) -> Iterator[Row]:
    n, tasks = 100_000, 10
    ewc, (g, w) = EwcPlusPlus(n), (np.sqrt(n, dtype=np.float32) * normal(n, seed=seed) for seed in range(2))
    for task in range(tasks):
        ewc.update_fisher(normal(n, seed=task))
        ewc.start_new_task(normal(n, seed=tasks + task))
    case = f"n={n}, {tasks} tasks"
    names = {"ewc": ewc, "g": g, "w": w}
    constraint = "ewc.apply_constraints(g, w, 1e-3)"
    for what, code, bound in (
        ("EWC constraint", constraint, 500e-6),
        ("EWC proximal step", "ewc.proximal_step(w, 1e-3)", None),
        ("Fisher update of EWC", "ewc.update_fisher(g)", 1e-3),
    ):
        yield within(what, case, interleave({"sona": Code(code, names)}, rounds=effort.rounds).median("sona"), bound)
    ewc.consolidate_all_tasks()
    (merged,) = ewc.tasks
    peer = {"F": merged.fisher, "a": merged.optimal_weights, "s": np.float32(tasks * ewc.lambda_), "r": np.float32(1e-3), "g": g, "w": w}
    codes = {"sona": Code(constraint, names), "numpy": Code("(g - s * F * (w - a)) / (1 + r * s * F)", peer)}
    rounds = interleave(codes, rounds=effort.rounds)
    yield faster("EWC constraint", f"n={n}, merged", rounds.median("sona"), "numpy, unchecked", rounds.ratio("numpy", "sona"), short=False)

    d, rank = 384, 16
    low = LowRankEwc(d, d)
    for task in range(tasks):
        low.update_fisher(normal(d, seed=task), normal(d, seed=tasks + task))
        low.start_new_task(normal(rank, d, seed=task), normal(rank, d, seed=tasks + task))
    down, up = normal(rank, d, seed=98), normal(rank, d, seed=99)
    dense = [(each.inputs[:, None] * each.outputs, each.down.T @ each.up) for each in low.tasks]
    codes = {
        "sona": Code("low.regularization_loss(down, up)", {"low": low, "down": down, "up": up}),
        "numpy": Code("W = down.T @ up; sum(float((F * (W - A) ** 2).sum()) for F, A in dense)", {"dense": dense, "down": down, "up": up}),
    }
    rounds, case = interleave(codes, rounds=effort.rounds), f"d={d} rank {rank}, {tasks} tasks"
    yield faster("EWC penalty of a product", case, rounds.median("sona"), "numpy, dense", rounds.ratio("numpy", "sona"), short=False)
    names = {"step": low.proximal_step, "down": down, "up": up}
    own = interleave({"sona": Code("step(down, up, rank=16, rate=1e-3)", names)}, rounds=effort.rounds).median("sona")
    yield within("EWC proximal step of a product", case, own, short=False)


def ring(effort: Effort) -> Iterator[Row]:
    record, out = np.zeros(256, np.float32), np.zeros(256, np.float32)
    ours = Ring(1 << 18)
    simple: queue.SimpleQueue[F32] = queue.SimpleQueue()
    codes = {
        "sona": Code("push(x); pop(out)", {"push": ours.push, "pop": ours.pop_into, "x": record, "out": out}),
        "queue": Code("put(copy()); get()", {"put": simple.put, "get": simple.get, "copy": record.copy}),
    }
    rounds = interleave(codes, rounds=effort.rounds)
    yield faster("ring from Python, push + pop", "1 KB", rounds.median("sona"), "SimpleQueue + copy", rounds.ratio("queue", "sona"), 2)


def scan(effort: Effort) -> Iterator[Row]:
    n, d, count = 10_000, 384, 10
    rows, x = normal(n, d), normal(d, seed=1)
    codes = {
        "sona": Code("k.top_k(rows, x, 10)", {"k": Kernels(), "rows": rows, "x": x}),
        "numpy": Code(
            "s = rows @ x; i = argpartition(s, -10)[-10:]; i[argsort(-s[i])]",
            {"rows": rows, "x": x, "argpartition": np.argpartition, "argsort": np.argsort},
        ),
    }
    faiss: Any = optional("faiss")
    if faiss:
        faiss.omp_set_num_threads(1)
        index = faiss.IndexFlatIP(d)
        index.add(rows)
        codes["faiss"] = Code("search(x, 10)", {"search": index.search, "x": x[None]})
    rounds = interleave(codes, rounds=effort.rounds, sample=3e-3)
    own, what, case = rounds.median("sona"), "exact scan", f"top {count} of {n} x {d}"
    yield faster(what, case, own, "numpy dot + argpartition", rounds.ratio("numpy", "sona"), 2)
    yield faster(what, case, own, "faiss Flat", rounds.ratio("faiss", "sona"), 1.1) if faiss else missing(what, case, own, "faiss")


def patterns(effort: Effort) -> Iterator[Row]:
    n, d, k, arms = 1000, 256, 50, 20
    draw = np.random.default_rng(1)
    x = (8 * normal(2 * k, d)[draw.integers(2 * k, size=n)] + 5 * normal(n, d, seed=2)).astype(np.float32)
    quality = draw.uniform(size=n)

    def filled() -> ReasoningBank:
        bank = ReasoningBank(PatternConfig(embedding_dim=d, k_clusters=k, merge_similarity=1.0, min_cluster_size=1))
        for row, q, arm in zip(x, quality.tolist(), draw.integers(arms, size=n).tolist(), strict=True):
            bank.add(row, q, arm=arm, reward=q)
        return bank

    first, later = filled(), filled()
    empty = first.state()
    later.extract_patterns()
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    peer = "KMeans(k, n_init=1).fit(x, sample_weight=w)"
    names = {"KMeans": KMeans, "k": k, "x": unit, "w": quality, "bank": later, "of": ReasoningBank.from_state, "config": first.config}
    codes = {
        "first": Code("of(config, state).extract_patterns()", {**names, "state": empty}),
        "later": Code("bank.extract_patterns()", names),
        "sklearn": Code(peer, names),
    }
    with one_thread():  # for the peer too
        rounds = interleave(codes, rounds=max(effort.rounds // 3, 5))
        inertia = [float(KMeans(k, n_init=1, random_state=seed).fit(unit, sample_weight=quality).inertia_) for seed in range(effort.rounds)]
    case = f"{n} trajectories, d={d}, k={k}"
    for name, what in (("first", "pattern extraction, first cycle"), ("later", "pattern extraction, later cycle")):
        own, ratio = rounds.median(name), rounds.ratio(name, "sklearn")
        yield Row(what, case, seconds(own), "scikit-learn KMeans, n_init=1", ratio, "<= 50 ms", own <= 0.05, short=name == "later")
    ours = []
    for seed in range(effort.rounds):
        bank = ReasoningBank.from_state(replace(first.config, seed=seed), empty)
        centroids = np.stack([pattern.centroid for pattern in bank.extract_patterns()])
        ours.append(float(quality @ ((unit[:, None] - centroids) ** 2).sum(axis=2).min(axis=1)))
    ratio = median(ours) / median(inertia)
    yield Row(
        "pattern extraction, inertia", case, f"{median(ours):.4g}", "scikit-learn KMeans, n_init=1", ratio, "<= 1.01x", ratio <= 1.01, False
    )

    names = {"bank": later, "x": x[0], "pi": np.full(arms, 1 / arms)}
    codes = {
        "find": Code("bank.find_patterns(x, 5)", names),
        "prior": Code("bank.prior(x, pi)", names),
        "add": Code("bank.add(x, 0.5, arm=3, reward=1.0)", {**names, "bank": filled()}),
        "statistics": Code("bank.verdicts()", names),
    }
    rounds = interleave(codes, rounds=effort.rounds)
    yield within("ReasoningBank.find_patterns", f"5 of {k} patterns, d={d}", rounds.median("find"), 100e-6)
    yield within("ReasoningBank.prior", f"10 of {n} trajectories, {arms} arms", rounds.median("prior"), short=False)
    yield within("ReasoningBank.add", f"d={d}", rounds.median("add"), short=False)
    yield within("ReasoningBank.verdicts", f"{case}, {arms} arms", rounds.median("statistics"), short=False)


def trajectories(effort: Effort) -> Iterator[Row]:
    d = 256
    engine = SonaEngine(SonaConfig(hidden_dim=d, precondition="identity"))
    names = {"x": normal(d), "v": 10 * normal(d, seed=1), "y": np.empty(d, np.float32), "e": engine}
    body = (
        "t = e.begin_trajectory(x); e.add_step(t, activations=v, reward=1.0); e.add_step(t, activations=v, reward=0.0); e.end_trajectory(t)"
    )
    what, case = "trajectory from Python, begin to end", f"d={d}, 2 steps, no store"
    first = interleave({"sona": Code(body, names)}, rounds=effort.rounds).median("sona")
    interleave({"sona": Code(body, names)}, rounds=1, sample=0.1)  # longer than memory of the engine's buffers is new
    own = interleave({"sona": Code(body, names)}, rounds=effort.rounds).median("sona")
    yield within(what, case, own, 10e-6)
    yield within(f"{what}, while memory is new", case, first, short=False)
    engine.adapters[0].truncate()
    apply = interleave({"sona": Code("e.apply(x, y)", names)}, rounds=effort.rounds).median("sona")
    yield within("SonaEngine.apply", f"d={d} rank 8, out=", apply, 1e-6)


def child(script: str) -> float:
    """What a fresh interpreter prints."""
    return float(subprocess.run([sys.executable, "-c", dedent(script)], check=True, capture_output=True, text=True).stdout)


def memory(effort: Effort) -> Iterator[Row]:
    """Phi, walks and dreams; their own tables, phi_table.py, iit3_table.py, walk_table.py and dream_table.py, have more."""
    from dream_table import dreaming
    from iit3_table import NETWORKS, own
    from phi_table import against_numpy
    from walk_table import rows as walking

    for n in (8, 12, 16, 32):
        yield from (replace(row, short=row.target != "" and n > 8) for row in against_numpy(n, effort.rounds)[0])
    for name, most in (("rule110", 7.5e-3), ("macro, cm of ones", 34e-3), ("rule154", 0.46)):
        yield within("iit3 from Python", name, own(NETWORKS[name]), most)
    for row in walking(10_000, effort.rounds):
        what = f"{row.what}, 50 of 15 steps" if row.what.startswith("walks") else row.what
        yield replace(row, what=what, short=row.what == "walks")
    for row in dreaming(effort.rounds):
        yield replace(row, what=f"dreams {row.what}", short="gated, walk" in row.what and "5000 nodes" in row.case)


def footprint(effort: Effort) -> Iterator[Row]:
    for statement, bound in (("import sona", 0.15), ("from sona import Router", None)):
        script = f"import time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
        yield within(statement, "fresh interpreter", median(child(script) for _ in range(effort.starts)), bound)
    if not Path("/proc/self/statm").exists():
        return
    grown = child("""
        import resource, numpy as np, sona
        def resident():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * resource.getpagesize()
        rng = np.random.default_rng(0)
        sona.SonaEngine(sona.SonaConfig(hidden_dim=8))  # imports what an engine needs
        before = resident()
        engine = sona.SonaEngine(sona.SonaConfig(hidden_dim=256))
        for _ in range(10_000):
            x = rng.normal(size=256).astype(np.float32)
            t = engine.begin_trajectory(x)
            engine.add_step(t, activations=x, reward=1.0, expected=0.5)
            engine.end_trajectory(t)
        print(resident() - before)
    """)
    yield Row("memory added by an engine", "10000 trajectories, d=256", f"{grown / 1e6:.3g} MB", target="< 100 MB", met=grown < 100e6)


BENCHES: tuple[Callable[[Effort], Iterator[Row]], ...] = (
    micro_forward,
    base_forward,
    batch_forward,
    instant_step,
    routers,
    options,
    elementwise,
    consolidation,
    ring,
    scan,
    patterns,
    trajectories,
    memory,
    footprint,
)
