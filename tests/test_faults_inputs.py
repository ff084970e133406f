"""Whatever a caller passes, wherever it goes: the same numbers give the same answer, anything else a clear error, and nothing changes."""

import decimal
import fractions
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sona import Adapter, Router, SonaConfig, SonaEngine, SonaError, SqliteStore
from sona.errors import SonaTypeError, SonaValueError
from sona.store import FeedbackRow

DIM = 8
X = np.linspace(-1, 2, DIM, dtype=np.float32)


class Labelled(np.ndarray[Any, Any]):
    """A subclass of arrays, as libraries of units and labels have them."""


class Liar:
    """Says that it is an array, and is the wrong one."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.zeros((2, 3, 4))


class Service:
    """A router and an engine that have learned something, and every way to hand them a vector or a batch."""

    def __init__(self, store: Path | None) -> None:
        rng = np.random.default_rng(5)
        self.store = None if store is None else store / "s.db"
        self.router = Router(rng.normal(size=(3, DIM)), store=self.store, retrieval=4, seed=1, guard=False)
        self.plain = Router(rng.normal(size=(3, DIM)), seed=2, guard=False)
        self.engine = SonaEngine(SonaConfig(hidden_dim=DIM, num_layers=2), store=None if store is None else store / "e.db")
        self.adapter = Adapter(DIM, rank=2)
        self.adapter.append(rng.normal(size=DIM), rng.normal(size=DIM))
        for row in rng.normal(size=(20, DIM)):
            for router in (self.router, self.plain):
                router.feedback(router.route(row).id, 0.75)
        self.tid = self.engine.begin_trajectory(X)
        self.engine.add_step(self.tid, activations=X, reward=0.5)

    def close(self) -> None:
        self.router.close()
        self.plain.close()
        self.engine.close()

    def bits(self) -> list[Any]:
        """Everything that an argument might change."""
        states = [self.router.engine.state(), self.plain.engine.state(), self.engine.state()]
        counts = [
            {name: value for name, value in router.stats().items() if name in ("requests", "learned", "revised", "arms", "retrieval_rows")}
            for router in (self.router, self.plain)
        ]
        return [[(name, array.tobytes()) for name, array in state.items()] for state in states] + [
            counts,
            len(self.engine.memory),
            len(self.engine._open),
            len(self.engine._builder(self.tid)),
            self.adapter.down.tobytes(),
        ]

    def vectors(self) -> dict[str, Callable[[Any], Any]]:
        """Takes one vector; what it returns depends on nothing else."""
        return {
            "engine.apply": self.engine.apply,
            "engine.apply_micro_lora": self.engine.apply_micro_lora,
            "engine.apply_base_lora": self.engine.apply_base_lora,
            "adapter.forward": self._forward,
            "find_patterns": lambda x: len(self.router.engine.find_patterns(x)),
            "next_patterns": lambda x: self.router.engine.next_patterns(x),
            "memory.recall": lambda x: len(self.engine.memory.recall(x)),
        }

    def changing(self) -> dict[str, Callable[[Any], Any]]:
        """Takes one vector and does something with it."""
        return {
            "route": self.router.route,
            "route, no retrieval": self.plain.route,
            "add_arm": lambda x: self.router.add_arm("new", x),
            "warm_start": lambda x: self.router.warm_start([(x, 0, 0.5)]),
            "begin_trajectory": self.engine.begin_trajectory,
            "add_step activations": lambda x: self.engine.add_step(self.tid, activations=x, reward=0.5),
            "add_step x": lambda x: self.engine.add_step(self.tid, activations=X, x=x, reward=0.5),
            "memory.add": self.engine.memory.add,
            "arms": lambda x: Router({"a": X, "b": x}),
            "first arm": lambda x: Router({"a": x, "b": X + 1}, dim=DIM),
            "adapter.append up": lambda x: self.adapter.append(x, X),
            "adapter.append down": lambda x: self.adapter.append(X, x),
        }

    def batches(self) -> dict[str, Callable[[Any], Any]]:
        """Takes rows of vectors."""
        return {
            "route_batch": lambda x: [d.index for d in self.router.route_batch(x)],
            "route_batch, no retrieval": lambda x: [d.index for d in self.plain.route_batch(x)],
            "predict": self.router.predict,
            "router.apply_batch": self.router.apply_batch,
            "engine.apply_batch": self.engine.apply_batch,
            "adapter.forward_batch": self._forward_batch,
        }

    def _forward(self, x: Any) -> Any:
        out = np.zeros(DIM, np.float32)
        self.adapter.forward(x, out)
        return out

    def _forward_batch(self, x: Any) -> Any:
        out = np.zeros((2, DIM), np.float32)
        self.adapter.forward_batch(x, out)
        return out


@pytest.fixture(params=["memory", "store"])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path if request.param == "store" else None)
    yield made
    made.close()


def twice(x: Any) -> Any:
    """Two rows of it, as the same kind of thing where that can be."""
    if isinstance(x, np.ma.MaskedArray):
        return np.ma.stack([x, x])
    return np.stack([x, x]) if isinstance(x, np.ndarray) and x.ndim == 1 else [x, x]


def beside(x: Any) -> Any:
    """It in the second row of a batch whose first one is right."""
    if isinstance(x, np.ma.MaskedArray):
        return np.ma.stack([X, x])
    return twice(x) if isinstance(x, np.ndarray) and x.dtype == bool else [X.tolist(), x]


# ---- the same numbers in any layout ----

GOOD: dict[str, Callable[[Any], Any]] = {
    "float64": lambda x: x.astype(np.float64),
    "longdouble": lambda x: x.astype(np.longdouble),
    "big-endian": lambda x: x.astype(">f4"),
    "big-endian float64": lambda x: x.astype(">f8"),
    "negative stride": lambda x: x[..., ::-1].copy()[..., ::-1],
    "every second": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "column": lambda x: np.asfortranarray(np.stack([x, x], axis=-1))[..., 0],
    "misaligned": lambda x: np.frombuffer(b"x" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(x.shape),
    "read-only": lambda x: (x.copy(), x)[1] if x.setflags(write=False) is None else x,
    "subclass": lambda x: x.view(Labelled),
    "masked, nothing hidden": lambda x: np.ma.masked_array(x, mask=np.zeros(x.shape, bool)),
    "list": lambda x: x.tolist(),
    "memoryview": lambda x: memoryview(np.ascontiguousarray(x)),
    "broadcast": lambda x: np.broadcast_to(x, (3, *x.shape))[1],
}


@pytest.mark.parametrize("layout", GOOD)
def test_any_layout_of_the_same_numbers_gets_the_same_answer_everywhere(service: Service, layout: str) -> None:
    for name, call in service.vectors().items():
        np.testing.assert_array_equal(call(GOOD[layout](X.copy())), call(X), err_msg=name)
    rows = np.stack([X, -X])
    for name, call in service.batches().items():
        np.testing.assert_array_equal(call(GOOD[layout](rows.copy())), call(rows), err_msg=name)
    for name, call in service.changing().items():
        call(GOOD[layout](X.copy() + 3 if "arm" in name or "memory" in name else X.copy()))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "uint64", "float16"])
def test_small_numbers_of_any_type_are_those_numbers(service: Service, dtype: str) -> None:
    x = np.arange(DIM)
    for name, call in service.vectors().items():
        np.testing.assert_array_equal(call(x.astype(dtype)), call(x.astype(np.float32)), err_msg=name)


# ---- what is no vector of finite numbers ----

BAD: dict[str, tuple[Callable[[], Any], type[SonaError]]] = {
    "NaN": (lambda: np.where(np.arange(DIM) == 3, np.nan, X), SonaValueError),
    "NaN, float32": (lambda: np.where(np.arange(DIM) == 7, np.float32(np.nan), X), SonaValueError),
    "infinity, float16": (lambda: np.full(DIM, np.inf, np.float16), SonaValueError),
    "beyond float32": (lambda: np.full(DIM, 1e39), SonaValueError),
    "beyond float64": (lambda: np.full(DIM, np.longdouble("1e4000")), SonaValueError),
    "huge ints": (lambda: [10**400] * DIM, SonaTypeError),
    "0-d": (lambda: np.float32(1.0), SonaValueError),
    "short": (lambda: X[1:], SonaValueError),
    "long": (lambda: np.append(X, X), SonaValueError),
    "3-d": (lambda: np.ones((1, 1, DIM)), SonaValueError),
    "empty": (lambda: [], SonaValueError),
    "matrix": (lambda: np.ones((1, DIM)).view(np.matrix), SonaValueError),
    "masked": (lambda: np.ma.masked_array(X, mask=np.arange(DIM) == 2), SonaTypeError),
    "object": (lambda: X.astype(object), SonaTypeError),
    "None inside": (lambda: [None, *X.tolist()[1:]], SonaTypeError),
    "text": (lambda: ["1"] * DIM, SonaTypeError),
    "bytes": (lambda: b"x" * DIM, SonaTypeError),
    "bool": (lambda: np.ones(DIM, bool), SonaTypeError),
    "complex": (lambda: X.astype(complex), SonaTypeError),
    "dates": (lambda: np.zeros(DIM, "M8[s]"), SonaTypeError),
    "durations": (lambda: np.zeros(DIM, "m8[s]"), SonaTypeError),
    "records": (lambda: np.zeros(DIM, [("a", "f4")]), SonaTypeError),
    "ragged": (lambda: [[1.0, 2.0], [3.0]], SonaTypeError),
    "generator": (lambda: (float(v) for v in X), SonaTypeError),
    "set": (lambda: set(X.tolist()), SonaTypeError),
    "dict": (lambda: {0: 1.0}, SonaTypeError),
    "None": (lambda: None, SonaTypeError),
    "liar": (Liar, SonaValueError),
}


PASSED_ON = ("NaN", "NaN, float32")  # by an adapter alone, into the output that it belongs to: it keeps nothing of an input


@pytest.mark.parametrize("case", BAD)
def test_anything_else_is_refused_everywhere_and_changes_nothing(service: Service, case: str) -> None:
    make, error = BAD[case]
    before = service.bits()
    for name, call in {**service.vectors(), **service.changing()}.items():
        if (case, name) == ("None", "add_step x") or (name == "adapter.forward" and case in PASSED_ON):
            continue
        with pytest.raises((SonaTypeError, SonaValueError), match=r"expected .*got"):
            pytest.fail(f"{name} returned {call(make())!r}")
    for name, call in service.batches().items():
        for rows in (twice(make()), beside(make()), make() if case != "matrix" else np.ones((2, DIM + 1))):
            if name == "adapter.forward_batch" and case in PASSED_ON:
                continue
            with pytest.raises((SonaTypeError, SonaValueError), match=r"expected .*got"):
                pytest.fail(f"{name} returned {call(rows)!r}")
    assert service.bits() == before
    with pytest.raises(error):
        service.router.route(make())
    for router in (service.router, service.plain):
        assert router.stats()["rejected"] > 0


def test_refused_requests_are_counted_one_for_each_call() -> None:
    """Also those of a batch, and where decisions are compared with earlier ones."""
    for retrieval in (0, 5):
        router = Router(np.eye(3, DIM), retrieval=retrieval)
        for number, call in enumerate((router.route, router.route_batch, router.route, router.route_batch), 1):
            with pytest.raises(SonaValueError):
                call(np.full((1,) * number, np.nan))
            assert router.stats()["rejected"] == number
        assert router.stats()["requests"] == 0


# ---- where results go ----

OUT: dict[str, Callable[[], Any]] = {
    "float64": lambda: np.zeros((2, DIM)),
    "big-endian": lambda: np.zeros((2, DIM), ">f4"),
    "read-only": lambda: np.broadcast_to(np.zeros(DIM, np.float32), (2, DIM)),
    "negative stride": lambda: np.zeros((2, DIM), np.float32)[:, ::-1],
    "Fortran order": lambda: np.asfortranarray(np.zeros((2, DIM), np.float32)),
    "misaligned": lambda: np.zeros(8 * DIM + 1, np.uint8)[1:].view(np.float32).reshape(2, DIM),
    "other rows": lambda: np.zeros((3, DIM), np.float32),
    "one vector": lambda: np.zeros(DIM, np.float32),
    "list": lambda: [[0.0] * DIM] * 2,
    "object": lambda: np.zeros((2, DIM), object),
}


@pytest.mark.parametrize("case", OUT)
def test_an_output_that_cannot_be_written_to_is_refused_in_batches_too(service: Service, case: str) -> None:
    rows = np.stack([X, -X])
    for call in (service.router.apply_batch, service.engine.apply_batch, service.adapter.forward_batch):
        out = OUT[case]()
        before = np.array(out)
        with pytest.raises((SonaTypeError, SonaValueError), match=r"out: expected .*got"):
            call(rows, out)
        np.testing.assert_array_equal(np.array(out), before)


def test_an_output_that_overlaps_the_input_gets_what_another_would(service: Service) -> None:
    """The rows shifted by some, by one number, or the very same memory."""
    for call in (service.router.apply_batch, service.engine.apply_batch):
        rows = np.random.default_rng(0).normal(size=(2, DIM)).astype(np.float32)
        want = call(rows)
        for shift in (0, 1, DIM, DIM + 3):
            memory = np.zeros(4 * DIM, np.float32)
            x = memory[: 2 * DIM].reshape(2, DIM)
            x[:] = rows
            out = memory[shift : shift + 2 * DIM].reshape(2, DIM)
            np.testing.assert_array_equal(call(x, out), want)
            np.testing.assert_array_equal(out, want)


# ---- numbers ----

NUMBERS: dict[str, Any] = {
    "float32": np.float32(0.5),
    "float16": np.float16(0.5),
    "longdouble": np.longdouble(0.5),
    "0-d": np.array(0.5),
    "Fraction": fractions.Fraction(1, 2),
    "Decimal": decimal.Decimal("0.5"),
}

NO_NUMBERS: dict[str, Any] = {
    "NaN": float("nan"),
    "infinity": float("inf"),
    "-infinity": -np.inf,
    "float16 infinity": np.float16(np.inf),
    "longdouble": np.longdouble("1e4000"),
    "huge int": 10**400,
    "below": -0.001,
    "above": 1 + 1e-9,
    "text": "0.5",
    "numpy text": np.str_("0.5"),
    "bytes": b"1",
    "complex": 0.5 + 0j,
    "numpy complex": np.complex128(0.5),
    "duration": np.timedelta64(1, "s"),
    "date": np.datetime64("2020-01-01"),
    "vector": np.array([0.5]),
    "list": [0.5],
    "Decimal NaN": decimal.Decimal("nan"),
    "Signalling NaN": decimal.Decimal("sNaN"),
    "object": object(),
}


def rewarding(service: Service) -> dict[str, Callable[[Any], Any]]:
    """Takes a reward."""
    known = [service.router.route(X).id for _ in range(2)]
    ended = service.engine.begin_trajectory(X)
    service.engine.add_step(ended, activations=X)
    service.engine.end_trajectory(ended)
    return {
        "feedback": lambda r: service.router.feedback(known[0], r),
        "feedback, sync": lambda r: service.router.feedback(known[0], r, sync=True),
        "feedback_batch": lambda r: service.router.feedback_batch(known, [0.5, r]),
        "warm_start": lambda r: service.router.warm_start([(X, 0, r)]),
        "add_step": lambda r: service.engine.add_step(service.tid, activations=X, reward=r),
        "add_step expected": lambda r: service.engine.add_step(service.tid, activations=X, expected=r),
        "engine.feedback": lambda r: service.engine.feedback(ended, r),
        "end_trajectory": lambda r: service.engine.end_trajectory(service.tid, r),
    }


@pytest.mark.parametrize("case", NUMBERS)
def test_a_reward_of_any_type_of_number_is_that_number(service: Service, case: str) -> None:
    for name, call in rewarding(service).items():
        call(NUMBERS[case])
        if name == "feedback":
            assert service.router.stats()["learned"] == 21


@pytest.mark.parametrize("case", NO_NUMBERS)
def test_a_reward_that_is_none_is_refused_everywhere_and_changes_nothing(service: Service, case: str) -> None:
    calls = rewarding(service)
    before, rejected = service.bits(), service.router.engine.stats()["rejected"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's about parts that are lost: it has to be refused whether or not they are errors
        for name, call in calls.items():
            with pytest.raises((SonaTypeError, SonaValueError), match=r"expected .*got"):
                pytest.fail(f"{name} returned {call(NO_NUMBERS[case])!r}")
    assert service.bits() == before
    assert service.router.engine.stats()["rejected"] == rejected + 4


@pytest.mark.parametrize("case", NO_NUMBERS)
def test_a_setting_that_is_no_number_is_refused(case: str) -> None:
    value = NO_NUMBERS[case]
    if case in ("below", "above"):
        value = float("nan")
    router = Router(np.eye(2, DIM))
    for make in (
        lambda: Router(np.eye(2, DIM), cost={0: value}),
        lambda: Router(np.eye(2, DIM), tau=value),
        lambda: Router(np.eye(2, DIM), p0=value),
        lambda: Router(np.eye(2, DIM), reward_range=(-1, value)),
        lambda: Router(np.eye(2, DIM), reward_range=value),
        lambda: router.add_arm("new", X, value),
        lambda: SonaConfig(max_discard=value),
        lambda: SonaConfig(bias_input=value),
    ):
        with pytest.raises((SonaTypeError, SonaValueError), match="expected"):
            pytest.fail(f"made {make()!r}")
    assert router.arms == (0, 1)


# ---- ids ----


class Far:
    def __index__(self) -> int:
        return 10**9


NO_IDS: dict[str, Any] = {
    "float": 1.0,
    "NaN": float("nan"),
    "text": "1",
    "bytes": b"1",
    "None": None,
    "bool": True,
    "numpy bool": np.bool_(True),
    "vector": np.array([1]),
    "float array": np.array(1.0),
    "complex": 1j,
}


@pytest.mark.parametrize("case", NO_IDS)
def test_what_is_no_id_is_refused_and_changes_nothing(service: Service, case: str) -> None:
    good = service.router.route(X).id
    id, before, unknown = NO_IDS[case], service.bits(), service.router.stats()["unknown_feedback"]
    for name, call in {
        "feedback": lambda: service.router.feedback(id, 1.0),
        "feedback_batch": lambda: service.router.feedback_batch([good, id], [1.0, 1.0]),
        "engine.feedback": lambda: service.engine.feedback(id, 1.0),
        "add_step": lambda: service.engine.add_step(id, activations=X),
        "end_trajectory": lambda: service.engine.end_trajectory(id),
        "layer": lambda: service.engine.apply(X, layer=id),
        "step's layer": lambda: service.engine.add_step(service.tid, activations=X, layer=id),
        "explain": lambda: service.router.explain(id),
        "k": lambda: service.router.engine.find_patterns(X, id),
        "next k": lambda: service.router.engine.next_patterns(X, id),
        "recall k": lambda: service.engine.memory.recall(X, id),
        "forget": lambda: service.engine.memory.forget([id]),
        "pending": lambda: Router(np.eye(2, DIM), pending=id),
        "seed": lambda: Router(np.eye(2, DIM), seed=id),
    }.items():
        with pytest.raises((SonaTypeError, SonaValueError), match=r"expected .*got"):
            pytest.fail(f"{name} returned {call()!r}")
    assert service.bits() == before
    assert service.router.stats()["unknown_feedback"] == unknown


@pytest.mark.parametrize("kind", [int, np.int64, np.uint64, np.array])
def test_an_int_of_any_type_is_an_id(service: Service, kind: Callable[[int], Any]) -> None:
    one, two = (service.router.route(X).id for _ in range(2))
    assert service.router.feedback(kind(one), 1.0)
    assert service.router.feedback_batch([kind(two), kind(one)], [1.0, 0.0]) == 2
    tid = kind(service.engine.begin_trajectory(X))
    service.engine.add_step(tid, activations=X)
    service.engine.end_trajectory(tid)
    assert service.engine.feedback(tid, 1.0)
    assert service.engine.stats()["loop_a"]["accumulated"] == 1


@pytest.mark.parametrize("id", [-1, -(2**63), 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, Far()])
def test_an_id_that_nobody_has_is_a_soft_no(service: Service, id: Any) -> None:
    unknown, before = service.router.stats()["unknown_feedback"], service.bits()
    assert service.router.feedback(id, 1.0) is False
    assert service.router.feedback_batch([id, id], [1.0, 0.0]) == 0
    assert service.engine.feedback(id, 1.0) is False
    assert service.router.stats()["unknown_feedback"] == unknown + 3
    assert service.bits() == before
    with pytest.raises(SonaValueError, match="expected one that was begun"):
        service.engine.end_trajectory(id)


def test_as_many_as_there_are_is_a_number(service: Service) -> None:
    for many in (2**31, 2**63, 10**30):
        assert service.router.engine.find_patterns(X, many) == []
        assert service.router.engine.next_patterns(X, many) == []
        assert service.engine.memory.recall(X, many) == []
        with pytest.raises((SonaValueError, MemoryError)):
            Router(np.eye(2, DIM), pending=max(many, 2**62))


def test_a_trajectory_id_as_a_float_does_not_teach_what_the_store_refuses(tmp_path: Path) -> None:
    """A float equal to an id is found in a dict, and is no id in a store: refused before anything is learned."""
    with SonaEngine(SonaConfig(hidden_dim=DIM), store=tmp_path / "s.db") as engine:
        tid = engine.begin_trajectory(X)
        engine.add_step(tid, activations=X)
        engine.end_trajectory(tid)
        with pytest.raises(SonaTypeError):
            engine.feedback(float(tid), 1.0)  # type: ignore[arg-type]
        assert engine.stats()["loop_a"]["accumulated"] == 0
        assert engine.feedback(tid, 1.0)
        engine.flush()
    with SqliteStore(tmp_path / "s.db") as store:
        assert [(row.id, row.reward) for _, row in store.feedback_after(0)] == [(tid, 1.0)]


def test_rows_for_a_store_are_checked_when_they_are_made() -> None:
    for bad in (1.0, True, "1", None, -1, 2**63):
        with pytest.raises((SonaTypeError, SonaValueError)):
            FeedbackRow(bad, 1.0, 0.0)  # type: ignore[arg-type]
    for bad_reward in (float("nan"), float("inf"), "1", None, 1j):
        with pytest.raises((SonaTypeError, SonaValueError)):
            FeedbackRow(1, bad_reward, 0.0)  # type: ignore[arg-type]
