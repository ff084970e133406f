"""Promises of the kernels: every table computes what float64 does, to the rounding of float32, and refuses what it cannot read.

Bounds. EPS = 2^-24 is half a unit in the last place of 1. A sum of n products in any order is within (n + 2) EPS of the sum of their
absolute values; an element-wise result within one EPS per operation of the sum of the absolute values of its terms. TINY covers results
in the denormal range, where rounding is absolute.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from conftest import RunPython
from hypothesis import given
from hypothesis import strategies as st

import sona
from sona._kernels import Kernels
from sona.errors import SonaTypeError, SonaValueError

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

EPS = 2.0**-24
TINY = 2.0**-148

tables = st.sampled_from(sona.isas()).map(Kernels)
lengths = st.integers(0, 130)
seeds = st.integers(0, 2**32 - 1)
magnitudes = st.sampled_from([1e-40, 1e-20, 1.0, 1e15])
SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45], dtype=np.float32)


class Numbers:
    """Seeded float32 arrays at every alignment that float32 allows."""

    def __init__(self, seed: int, magnitude: float = 1.0, special: bool = False) -> None:
        self.rng = np.random.default_rng(seed)
        self.magnitude = magnitude
        self.special = special

    def __call__(self, *shape: int) -> Floats:
        size = int(np.prod(shape))
        shift = int(self.rng.integers(16))
        values: Floats = np.empty(size + shift, dtype=np.float32)[shift:]
        values[:] = self.rng.normal(size=size) * self.magnitude
        if self.special and size:
            spots = self.rng.integers(size, size=1 + size // 16)
            values[spots] = self.rng.choice(SPECIAL, size=len(spots))
        return values.reshape(shape)


numbers = st.builds(Numbers, seeds, magnitudes)
with_special = st.builds(Numbers, seeds, special=st.just(True))


def wide(*arrays: Floats) -> tuple[Doubles, ...]:
    return tuple(a.astype(np.float64) for a in arrays)


def close(got: Any, want: Any, absolute: Any, operations: int) -> None:
    """|got - want| <= operations EPS absolute, absolute: the sum of the absolute values of what was added."""
    error = np.abs(np.asarray(got, dtype=np.float64) - want)
    assert (error <= operations * (EPS * np.asarray(absolute) + TINY)).all(), float(np.max(error))


def same_kind(got: Any, want: Any) -> None:
    """NaN where NaN, infinity of the same sign where infinity, and finite elsewhere."""
    got, want = np.asarray(got), np.asarray(want)
    assert (np.isnan(got) == np.isnan(want)).all()
    assert (np.where(np.isinf(got), got, 0) == np.where(np.isinf(want), want, 0))[~np.isnan(want)].all()


# ---- sums ----


@given(tables, numbers, lengths)
def test_dot(k: Kernels, draw: Numbers, n: int) -> None:
    a, b = draw(n), draw(n)
    wa, wb = wide(a, b)
    close(k.dot(a, b), wa @ wb, np.abs(wa) @ np.abs(wb), n + 2)


@given(tables, numbers, st.integers(0, 9), lengths)
def test_gemv_is_a_dot_per_row(k: Kernels, draw: Numbers, rows: int, n: int) -> None:
    a, x, out = draw(rows, n), draw(n), draw(rows)
    k.gemv(a, x, out)
    wa, wx = wide(a, x)
    close(out, wa @ wx, np.abs(wa) @ np.abs(wx), n + 2)
    assert out.tolist() == [np.float32(k.dot(np.ascontiguousarray(row), x)) for row in a]  # whatever stands around a row


@given(tables, numbers, st.integers(0, 9), lengths)
def test_gemv_t_adds_rows(k: Kernels, draw: Numbers, rows: int, n: int) -> None:
    a, coef, y = draw(rows, n), draw(rows), draw(n)
    wa, wc, wy = wide(a, coef, y)
    k.gemv_t(a, coef, y)
    close(y, wy + wc @ wa, np.abs(wy) + np.abs(wc) @ np.abs(wa), rows + 2)


@given(tables, with_special, lengths)
def test_sums_keep_nan_and_infinity(k: Kernels, draw: Numbers, n: int) -> None:
    a, x = draw(3, n), draw(n)
    out = np.zeros(3, dtype=np.float32)
    k.gemv(a, x, out)
    with np.errstate(all="ignore"):
        terms = wide(a * x)[0]
        same_kind(out, terms.sum(axis=1))
        same_kind(k.dot(a[0], x), terms[0].sum())


# ---- element by element ----


@given(tables, numbers, lengths, st.floats(-2, 2, width=32))
def test_axpy(k: Kernels, draw: Numbers, n: int, alpha: float) -> None:
    x, y = draw(n), draw(n)
    wx, wy = wide(x, y)
    k.axpy(alpha, x, y)
    close(y, wy + alpha * wx, np.abs(wy) + np.abs(alpha * wx), 2)


@given(tables, numbers, st.integers(0, 9), lengths, st.floats(-2, 2, width=32))
def test_ger_is_the_outer_product(k: Kernels, draw: Numbers, rows: int, n: int, alpha: float) -> None:
    x, y, m = draw(rows) / np.float32(draw.magnitude), draw(n), draw(rows, n)
    wx, wy, wm = wide(x, y, m)
    k.ger(alpha, x, y, m)
    close(m, wm + alpha * np.outer(wx, wy), np.abs(wm) + np.abs(alpha * np.outer(wx, wy)), 3)


@given(tables, seeds, lengths, st.floats(0, 1, width=32))
def test_fisher_update_is_an_exponential_mean(k: Kernels, seed: int, n: int, decay: float) -> None:
    draw = Numbers(seed)
    f, g = np.abs(draw(n)), draw(n)
    wf, wg = wide(f, g)
    k.fisher_update(f, g, decay)
    close(f, wf + decay * (wg**2 - wf), wf + decay * (wg**2 + wf), 4)


@given(tables, seeds, lengths, st.floats(0, 1e6, width=32))
def test_ewc_pull_is_the_gradient_of_the_penalty(k: Kernels, seed: int, n: int, strength: float) -> None:
    draw = Numbers(seed)
    g, f, w, anchor = draw(n), np.abs(draw(n)), draw(n), draw(n)
    wg, wf, ww, wa = wide(g, f, w, anchor)
    k.ewc_pull(g, f, w, anchor, strength)
    close(g, wg - strength * wf * (ww - wa), np.abs(wg) + strength * wf * np.abs(ww - wa), 4)


@given(tables, seeds, lengths, st.floats(0, 1e6, width=32))
def test_ewc_scale_never_turns_a_gradient_round(k: Kernels, seed: int, n: int, strength: float) -> None:
    draw = Numbers(seed)
    g, f = draw(n), np.abs(draw(n))
    before, wf = wide(g, f)
    k.ewc_scale(g, f, strength)
    close(g, before / (1 + strength * wf), np.abs(before / (1 + strength * wf)), 4)
    assert (np.abs(g) <= np.abs(before)).all()
    assert (g * before >= 0).all()


@given(tables, with_special, lengths)
def test_elements_keep_nan_and_infinity(k: Kernels, draw: Numbers, n: int) -> None:
    x, f, w, anchor = draw(n), draw(n), draw(n), draw(n)
    half = np.float32(0.5)
    with np.errstate(all="ignore"):
        wanted = [x + half * f, f + half * (x * x - f), x - half * f * (w - anchor), x / (1 + half * f)]
    got = [x.copy(), f.copy(), x.copy(), x.copy()]
    k.axpy(0.5, f, got[0])
    k.fisher_update(got[1], x, 0.5)
    k.ewc_pull(got[2], f, w, anchor, 0.5)
    k.ewc_scale(got[3], f, 0.5)
    for a, b in zip(got, wanted, strict=True):
        same_kind(a, b)


# ---- low-rank adapters ----


def lora(draw: Numbers, rank: int, dim: int, offset: bool) -> tuple[Floats, Floats, Floats | None]:
    return draw(rank, dim), draw(rank, dim), draw(rank) if offset else None


def delta(down: Floats, up: Floats, offset: Floats | None, x: Doubles, scale: float) -> tuple[Doubles, Doubles]:
    """What x (rows, dim) gets, and the sum of the absolute values of its terms."""
    wd, wu = wide(down, up)
    wo = np.zeros(len(down)) if offset is None else wide(offset)[0]
    absolute = scale * (np.abs(x) @ np.abs(wd).T + np.abs(wo)) @ np.abs(wu)
    return scale * (x @ wd.T + wo) @ wu, absolute


@given(tables, seeds, st.integers(0, 40), lengths, st.booleans(), st.floats(0.125, 4, width=32))
def test_lora_forward(k: Kernels, seed: int, rank: int, dim: int, offset: bool, scale: float) -> None:
    draw = Numbers(seed)
    down, up, constant = lora(draw, rank, dim, offset)
    x, y = draw(dim), draw(dim)
    wx, wy = wide(x, y)
    add, absolute = delta(down, up, constant, wx[None], scale)
    k.lora_forward(down, up, x, y, scale, constant)
    close(y, wy + add[0], np.abs(wy) + absolute[0], dim + rank + 5)


@given(tables, seeds, st.sampled_from([0, 1, 2, 3, 8, 16, 33]), st.integers(0, 70), st.integers(0, 9), st.booleans())
def test_lora_forward_batch(k: Kernels, seed: int, rank: int, dim: int, rows: int, offset: bool) -> None:
    draw = Numbers(seed)
    down, up, constant = lora(draw, rank, dim, offset)
    x, y = draw(rows, dim), draw(rows, dim)
    wx, wy = wide(x, y)
    add, absolute = delta(down, up, constant, wx, 0.5)
    k.lora_forward_batch(down, up, x, y, scale=0.5, offset=constant)
    close(y, wy + add, np.abs(wy) + absolute, dim + rank + 5)


@given(tables, seeds, st.integers(0, 5), lengths, st.booleans())
def test_lora_gradient_is_that_of_the_forward_pass(k: Kernels, seed: int, rank: int, dim: int, offset: bool) -> None:
    draw = Numbers(seed)
    down, up, constant = lora(draw, rank, dim, offset)
    x, g, d_down, d_up = draw(dim), draw(dim), draw(rank, dim), draw(rank, dim)
    wd, wu, wx, wg, w_down, w_up = wide(down, up, x, g, d_down, d_up)
    wo = np.zeros(rank) if constant is None else wide(constant)[0]
    k.lora_gradient(down, up, x, g, d_down, d_up, 0.5, constant)
    z, h = wd @ wx + wo, wu @ wg
    most_z, most_h = np.abs(wd) @ np.abs(wx) + np.abs(wo), np.abs(wu) @ np.abs(wg)
    close(d_up, w_up + 0.5 * np.outer(z, wg), np.abs(w_up) + 0.5 * np.outer(most_z, np.abs(wg)), dim + 5)
    close(d_down, w_down + 0.5 * np.outer(h, wx), np.abs(w_down) + 0.5 * np.outer(most_h, np.abs(wx)), dim + 5)


# ---- search ----


@given(tables, st.builds(Numbers, seeds, special=st.booleans()), st.integers(0, 150), st.integers(1, 20), st.integers(0, 160))
def test_top_k_is_a_stable_sort(k: Kernels, draw: Numbers, rows: int, n: int, count: int) -> None:
    a, x = draw(rows, n), draw(n)
    a[rows // 2 :: 3] = a[: len(a[rows // 2 :: 3])]  # equal rows tie
    scores = np.empty(rows, dtype=np.float32)
    k.gemv(a, x, scores)
    kept = [i for i in range(rows) if not np.isnan(scores[i])]
    want = sorted(kept, key=lambda i: (-scores[i], i))[:count]
    index, score = k.top_k(a, x, count)
    assert index.tolist() == want
    assert score.tolist() == scores[want].tolist()
    assert (index.dtype, score.dtype) == (np.intp, np.float32)


# ---- refusals: the words, and nothing written ----

V, W, M = (np.ones(shape, dtype=np.float32) for shape in (4, 4, (2, 4)))
TWO = np.ones(2, dtype=np.float32)
READ_ONLY = np.ones(4, dtype=np.float32)
READ_ONLY.flags.writeable = False
SHARED = np.ones(12, dtype=np.float32)
UNALIGNED = np.frombuffer(bytearray(18), dtype=np.uint8)[1:17].view(np.float32)

REFUSED: list[tuple[Callable[[Kernels], object], type[Exception], str]] = [
    (lambda k: k.dot([1.0], V), SonaTypeError, "a: expected a float32 array, got list"),
    (lambda k: k.dot(V, None), SonaTypeError, "b: expected a float32 array, got NoneType"),
    (lambda k: k.dot(V.astype(np.float64), V), SonaTypeError, "a: expected dtype float32, got float64"),
    (lambda k: k.dot(V.astype(">f4"), V), SonaTypeError, "a: expected dtype float32, got >f4"),
    (lambda k: k.dot(V, V[1:]), SonaValueError, r"b: expected shape \(4,\), got \(3,\)"),
    (lambda k: k.dot(V[::2], TWO), SonaValueError, "a: expected a C-contiguous aligned array"),
    (lambda k: k.dot(UNALIGNED, V), SonaValueError, "a: expected a C-contiguous aligned array"),
    (lambda k: k.axpy(1, V, READ_ONLY), SonaValueError, "y: expected a writeable array"),
    (lambda k: k.axpy(1, V, V), SonaValueError, "x and y: expected arrays that do not overlap"),
    (lambda k: k.axpy(1, SHARED[:4], SHARED[3:7]), SonaValueError, "x and y: expected arrays that do not overlap"),
    (lambda k: k.gemv(V, V, TWO), SonaValueError, r"a: expected shape \(n, n\), got \(4,\)"),
    (lambda k: k.gemv(M, TWO, TWO), SonaValueError, r"x: expected shape \(4,\), got \(2,\)"),
    (lambda k: k.gemv(M, V, W), SonaValueError, r"out: expected shape \(2,\), got \(4,\)"),
    (lambda k: k.gemv(M, V, V[:2]), SonaValueError, "x and out: expected arrays that do not overlap"),
    (lambda k: k.gemv(M.T, TWO, V), SonaValueError, "a: expected a C-contiguous aligned array"),
    (lambda k: k.gemv_t(M, V, W), SonaValueError, r"coef: expected shape \(2,\), got \(4,\)"),
    (lambda k: k.gemv_t(M, TWO, M[0]), SonaValueError, "a and y: expected arrays that do not overlap"),
    (lambda k: k.ger(1, V, W, M), SonaValueError, r"m: expected shape \(4, 4\), got \(2, 4\)"),
    (lambda k: k.ger(1, TWO, M[0], M), SonaValueError, "y and m: expected arrays that do not overlap"),
    (lambda k: k.lora_forward(M, M[:1], V, W), SonaValueError, r"up: expected shape \(2, 4\), got \(1, 4\)"),
    (lambda k: k.lora_forward(M, M, V, W, offset=V), SonaValueError, r"offset: expected shape \(2,\), got \(4,\)"),
    (lambda k: k.lora_forward(M, M, V, V), SonaValueError, "x and out: expected arrays that do not overlap"),
    (lambda k: k.lora_forward(M, M, V, M[1]), SonaValueError, "down and out: expected arrays that do not overlap"),
    (lambda k: k.lora_forward_batch(M, M, V, W), SonaValueError, r"x: expected shape \(n, 4\), got \(4,\)"),
    (lambda k: k.lora_gradient(M, M, V, W, M.copy(), M), SonaValueError, "down and d_up: expected arrays that do not overlap"),
    (lambda k: k.fisher_update(V, W, 1.5), SonaValueError, r"decay: expected a number in \[0, 1\], got 1.5"),
    (lambda k: k.fisher_update(V, W, float("nan")), SonaValueError, "decay"),
    (lambda k: k.ewc_pull(V, W, W, V, 1), SonaValueError, "anchor and g: expected arrays that do not overlap"),
    (lambda k: k.ewc_scale(V, V, 1), SonaValueError, "f and g: expected arrays that do not overlap"),
    (lambda k: k.top_k(M, V, -1), SonaValueError, "k: expected at least 0, got -1"),
    (lambda k: k.top_k(M, TWO, 1), SonaValueError, r"x: expected shape \(4,\), got \(2,\)"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_refusal(call: Callable[[Kernels], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(Kernels())
    assert all((a == 1).all() for a in (V, W, M, TWO, READ_ONLY, SHARED))


def test_tables_by_name(isa: str) -> None:
    assert Kernels(isa).isa == isa
    assert sona.isas()[0] == "scalar"
    assert Kernels().isa in sona.isas()
    with pytest.raises(SonaValueError, match=r"isa: expected one of scalar.*, got 'vax'"):
        Kernels("vax")


def test_environment_chooses_the_default(run_python: RunPython) -> None:
    run_python("from sona._kernels import Kernels; assert Kernels().isa == 'scalar'", SONA_ISA="scalar")
    run_python("import sona; from sona._kernels import Kernels; assert Kernels().isa == sona.isas()[-1]", SONA_ISA="")
    run_python("import pytest, sona; pytest.raises(sona.SonaValueError, sona.Adapter, 4)", SONA_ISA="vax")
