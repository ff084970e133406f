"""An index finds what a sort finds."""

import builtins
import importlib.util
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sona.errors import MissingExtraError, SonaTypeError, SonaValueError
from sona.patterns import ExactIndex, Index, UsearchIndex

D = 8
KINDS = [
    ExactIndex,
    pytest.param(UsearchIndex, marks=pytest.mark.skipif(importlib.util.find_spec("usearch") is None, reason="usearch is not installed")),
]
VECTORS = np.random.default_rng(0).normal(size=(50, D)).astype(np.float32)


class AgainstADict(RuleBasedStateMachine):
    """The index beside a dict of vectors, compared after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.index, self.model = ExactIndex(D), dict[int, Any]()

    @rule(ids=st.lists(st.integers(0, 200), min_size=1, max_size=60), vector=st.integers(0, 49))
    def add(self, ids: list[int], vector: int) -> None:
        for offset, id in enumerate(ids):
            x = VECTORS[(vector + offset) % 50]
            self.index.add(id, x)
            self.model[id] = x

    @rule(ids=st.lists(st.integers(0, 200), max_size=60))
    def remove(self, ids: list[int]) -> None:
        for id in ids:
            assert self.index.remove(id) == (self.model.pop(id, None) is not None)

    @rule(x=st.integers(0, 49), k=st.integers(0, 250))
    def search(self, x: int, k: int) -> None:
        ids, scores = self.index.search(VECTORS[x], k)
        expected = sorted((float(v @ VECTORS[x]) for v in self.model.values()), reverse=True)[:k]
        np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose([self.model[i] @ VECTORS[x] for i in ids.tolist()], scores, rtol=1e-4, atol=1e-5)
        assert len(set(ids.tolist())) == len(ids)

    @invariant()
    def holds_the_same(self) -> None:
        assert len(self.index) == len(self.model)
        assert all(id in self.index for id in self.model)

    @invariant()
    def memory_follows_the_size(self) -> None:
        assert self.index.nbytes <= (4 * D + 8) * max(16, 5 * len(self.model))


TestAgainstADict = AgainstADict.TestCase
TestAgainstADict.settings = settings(max_examples=30, stateful_step_count=20)


@pytest.mark.parametrize("kind", KINDS)
def test_add_replace_remove_search(kind: Any) -> None:
    index: Index = kind(2)
    index.add(7, [1.0, 0.0])
    index.add(3, [0.0, 1.0])
    index.add(7, [0.6, 0.8])
    assert (len(index), 7 in index, 4 in index) == (2, True, False)
    ids, scores = index.search([1.0, 0.0], 5)
    assert ids.tolist() == [7, 3]
    np.testing.assert_allclose(scores, [0.6, 0.0], atol=1e-6)
    assert index.remove(7)
    assert not index.remove(7)
    assert index.search([1.0, 0.0], 5)[0].tolist() == [3]
    assert index.search([1.0, 0.0], 0)[0].tolist() == []


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_refused_leaves_the_index_as_it_was(kind: Any) -> None:
    index: Index = kind(2)
    index.add(1, [1.0, 0.0])
    for call, error, message in (
        (lambda: index.add(1, [np.nan, 0.0]), SonaValueError, "x: expected finite"),
        (lambda: index.add(2, [1.0]), SonaValueError, r"x: expected shape \(2,\), got \(1,\)"),
        (lambda: index.add(-1, [1.0, 0.0]), SonaValueError, "id: expected an int in"),
        (lambda: index.add("a", [1.0, 0.0]), SonaTypeError, "id: expected an int, got str"),  # type: ignore[arg-type]
        (lambda: index.search([np.inf, 0.0], 1), SonaValueError, "x: expected finite"),
        (lambda: index.search([1.0, 0.0], -1), SonaValueError, "k: expected at least 0, got -1"),
        (lambda: index.search([1.0, 0.0], 1.5), SonaTypeError, "k: expected an int, got float"),  # type: ignore[arg-type]
        (lambda: kind(0), SonaValueError, "dim: expected an int of at least 1, got 0"),
    ):
        with pytest.raises(error, match=message):
            call()
    assert len(index) == 1
    assert index.search([1.0, 0.0], 2)[1].tolist() == [1.0]


@pytest.mark.skipif(importlib.util.find_spec("usearch") is None, reason="usearch is not installed")
def test_the_approximate_index_recalls_95_percent() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(3000, 32)).astype(np.float32)  # without clusters: the hard case
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    exact, approximate = ExactIndex(32), UsearchIndex(32)
    for id, row in enumerate(rows):
        exact.add(id, row)
        approximate.add(id, row)
    for id in range(0, 3000, 3):
        exact.remove(id)
        approximate.remove(id)
    recall = [len({*exact.search(x, 10)[0].tolist()} & {*approximate.search(x, 10)[0].tolist()}) / 10 for x in rng.normal(size=(100, 32))]
    assert np.mean(recall) >= 0.95


def test_a_missing_usearch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("usearch"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"pip install 'sona\[ann\]'; ExactIndex needs nothing"):
        UsearchIndex(4)
