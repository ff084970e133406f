"""Promises of the adapters: what they add is the dense matrix they stand for, gradients are exact, and what is cut off is said."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import Dense

from sona import Adapter, BaseLoRA, MicroLoRA, fold, isas
from sona.errors import SonaCorruptError, SonaTypeError, SonaValueError

Array = np.ndarray[Any, Any]

DIM = 21  # no multiple of any vector width


def normal(rng: np.random.Generator, *shape: int) -> Array:
    return rng.normal(size=shape).astype(np.float32)


def grown(rng: np.random.Generator, pairs: int, dim: int = DIM, **options: Any) -> tuple[Adapter, Dense]:
    """An adapter that can hold all pairs without loss, and the dense correction it stands for."""
    adapter, dense = Adapter(dim, **({"rank": max(pairs, 1), "window": max(pairs, 2)} | options)), Dense(dim)
    for _ in range(pairs):
        append(adapter, dense, rng)
    return adapter, dense


def append(adapter: Adapter, dense: Dense, rng: np.random.Generator) -> None:
    up, down, coef, offset = normal(rng, adapter.dim), normal(rng, adapter.dim), float(rng.normal()), float(rng.normal())
    adapter.append(up, down, coef, offset)
    dense.append(up, down, coef, offset)


def added(adapter: Adapter, x: Array, tier: str = "both") -> Array:
    out = np.zeros_like(x, dtype=np.float32)
    adapter.forward_tier(x, out, tier)
    return out


def close(got: Array, want: Array, scale: float | None = None) -> None:
    """Equal to float32 rounding of sums of this size."""
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * (np.abs(want).max() if scale is None else scale) + 1e-6)


# ---- forward ----


@given(
    dim=st.integers(1, 70),
    steps=st.lists(st.sampled_from(["append", "append", "append", "fold", "truncate"]), max_size=30),
    micro=st.integers(1, 3),
    scale=st.sampled_from([1.0, 0.5, 2**-0.5]),
    isa=st.sampled_from(isas()),
    seed=st.integers(0, 2**32),
)
def test_forward_adds_the_dense_correction(dim: int, steps: list[str], micro: int, scale: float, isa: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    adapter, dense = Adapter(dim, rank=30, rank_max=64, micro=micro, max_discard=0, scale=scale, isa=isa), Dense(dim)
    x = normal(rng, dim)
    for step in steps:
        before = added(adapter, x)
        if step == "append":
            append(adapter, dense, rng)
        elif step == "fold":
            adapter.fold()
            np.testing.assert_array_equal(added(adapter, x), before)  # folding touches no weight
        else:
            assert adapter.truncate() < 1e-9  # rank 30 holds them all
        size = np.abs(x) @ np.abs(dense.matrix).max(axis=1) + np.abs(dense.constant).max() + 1
        close(added(adapter, x), dense(x), size)
        close(added(adapter, x, "base") + added(adapter, x, "micro"), dense(x), size)
        assert adapter.info()["total"] - adapter.info()["base"] <= micro
    rows = normal(rng, 5, dim)
    batch = np.zeros_like(rows)
    adapter.forward_batch(rows, batch)
    close(batch, np.stack([dense(row) for row in rows]), float(np.abs(dense.matrix).sum() + np.abs(dense.constant).max() + 1))


def test_forward_adds_to_what_is_there(rng: np.random.Generator, isa: str) -> None:
    adapter, dense = grown(rng, 3, isa=isa)
    x, out = normal(rng, DIM), normal(rng, DIM)
    want = out + dense(x)
    adapter.forward(x, out)
    close(out, want)
    assert adapter.isa == isa


def test_delta_is_the_dense_matrix(rng: np.random.Generator) -> None:
    adapter, dense = grown(rng, 4, scale=0.25)
    close(adapter.delta(), dense.matrix)


def test_the_tables_agree(rng: np.random.Generator) -> None:
    x, pairs = normal(rng, 131), normal(rng, 40, 131)
    outs = []
    for isa in isas():
        adapter = Adapter(131, rank=8, rank_max=16, isa=isa)
        for up, down in zip(pairs[::2], pairs[1::2], strict=True):
            adapter.append(up, down, 0.1, 0.3)
        outs.append(added(adapter, x))
    for other in outs[1:]:
        close(other, outs[0])


def test_an_empty_adapter_changes_nothing(rng: np.random.Generator, isa: str) -> None:
    adapter = Adapter(DIM, isa=isa)
    x, out = normal(rng, DIM), normal(rng, DIM)
    before = out.copy()
    adapter.forward(x, out)
    adapter.fold()
    assert adapter.truncate() == 0
    adapter.forward(x, out)
    adapter.forward_batch(x[None], out[None])
    np.testing.assert_array_equal(out, before)
    assert adapter.down.shape == adapter.up.shape == (0, DIM)


def test_tiers(rng: np.random.Generator) -> None:
    adapter, dense = grown(rng, 5, micro=2)
    x = normal(rng, DIM)
    assert adapter.info()["base"] == 4  # a third micro row makes the first two base
    micro = adapter.up[4] * (adapter.down[4] @ x + adapter.offset[4])
    close(added(adapter, x, "micro"), micro)
    close(added(adapter, x, "base"), dense(x) - micro)
    adapter.fold()
    np.testing.assert_array_equal(added(adapter, x, "micro"), np.zeros(DIM))
    for wrong in ("all", None, 3, ["base"]):
        with pytest.raises(SonaValueError, match="expected 'base', 'micro' or 'both'"):
            adapter.forward_tier(x, x.copy(), wrong)
        with pytest.raises(SonaValueError, match="expected 'base', 'micro' or 'both'"):
            adapter.forward_batch(x[None], x[None].copy(), wrong)


def test_scale_is_a_unit_of_the_stored_rows_only(rng: np.random.Generator) -> None:
    up, down, x = normal(rng, 3, DIM)
    outs = []
    for scale in (1.0, 0.125, 3.0):
        adapter = Adapter(DIM, scale=scale)
        adapter.append(up, down, 0.7, 0.1)
        outs.append(added(adapter, x))
    close(outs[1], outs[0])
    close(outs[2], outs[0])


# ---- truncation ----


@given(pairs=st.integers(2, 24), rank=st.integers(1, 8), dim=st.integers(2, 40), seed=st.integers(0, 2**32))
def test_truncation_is_the_best_approximation_and_says_what_it_drops(pairs: int, rank: int, dim: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    adapter, dense = grown(rng, pairs, dim, rank=rank, rank_max=rank, window=64)
    whole = np.vstack([dense.matrix, dense.constant])  # the constant input is one more input
    u, s, vt = np.linalg.svd(whole, full_matrices=False)
    dropped = adapter.truncate()
    kept = np.vstack([adapter.delta(), adapter.offset @ adapter.up])
    # the best approximation is unique only while the next singular value is apart; its error always is
    assert np.linalg.norm(kept - whole) <= np.sqrt((s[rank:] ** 2).sum()) + 1e-4 * s[0]
    np.testing.assert_allclose(dropped, (s[rank:] ** 2).sum() / (s**2).sum(), atol=1e-6)
    assert adapter.info()["total"] <= rank
    assert adapter.info()["discarded"] == dropped
    if len(s) > rank and s[rank - 1] > 1.1 * s[rank]:
        close(kept, (u[:, :rank] * s[:rank]) @ vt[:rank], 50 * s[0])


def test_repeated_inputs_truncate_to_their_sum(rng: np.random.Generator) -> None:
    """A constant stream makes singular Gram matrices."""
    adapter, dense = Adapter(DIM, rank=2, rank_max=2), Dense(DIM)
    up, down = normal(rng, 2, DIM)
    for coef in (1.0, 0.5, -0.25) * 20:
        adapter.append(up, down, coef, 0.1)
        dense.append(up, down, coef, 0.1)
    assert adapter.truncate() < 1e-9
    x = normal(rng, DIM)
    close(added(adapter, x), dense(x))


def test_a_sum_that_cancels_truncates_to_nothing(rng: np.random.Generator) -> None:
    adapter = Adapter(DIM)
    up, down, x = normal(rng, 3, DIM)
    adapter.append(up, down)
    adapter.append(up, down, -1)
    adapter.truncate()
    assert np.isfinite(adapter.up).all()
    assert np.abs(added(adapter, x)).max() < 1e-4


def test_rank_grows_until_the_loss_is_small_and_no_further_than_the_cap(rng: np.random.Generator) -> None:
    """Twelve orthogonal pairs of equal energy: rank 4 would drop two thirds of it."""
    q = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0].astype(np.float32)

    def learned(cap: int) -> dict[str, Any]:
        adapter = Adapter(DIM, rank=4, rank_max=cap, window=20, max_discard=0.05)
        for row in range(12):
            adapter.append(q[row], q[row])
        adapter.truncate()
        return adapter.info()

    free, capped = learned(64), learned(6)
    assert free["rank"] == 12  # 11 of 12 would still drop 8 %
    assert free["over_budget"] == 0
    assert capped["rank"] == 6
    assert capped["over_budget"] == 1
    assert capped["discarded"] == pytest.approx(0.5, abs=1e-6)
    assert capped["discarded_sum"] == capped["discarded"]


def test_a_long_stream_is_truncated_on_the_way(rng: np.random.Generator) -> None:
    """Corrections of rank 3 stay exact however many pairs come: only `window` of them pile up."""
    ups, adapter, dense = normal(rng, 3, DIM), Adapter(DIM, rank=3), Dense(DIM)
    for _ in range(400):
        up, down = rng.normal(size=3).astype(np.float32) @ ups, normal(rng, DIM)
        adapter.append(up, down, 0.05)
        dense.append(up, down, 0.05)
    assert adapter.info()["truncations"] > 20
    assert adapter.info()["total"] <= 3 + 16
    x = normal(rng, DIM)
    np.testing.assert_allclose(added(adapter, x), dense(x), atol=1e-3 * np.abs(dense(x)).max())


# ---- rows ----


def test_assign_replaces_all_rows(rng: np.random.Generator) -> None:
    adapter, _ = grown(rng, 3)
    down, up, offset = normal(rng, 40, DIM), normal(rng, 40, DIM), normal(rng, 40)
    adapter.assign(down, up, offset, base=38)
    np.testing.assert_array_equal(adapter.down, down)
    np.testing.assert_array_equal(adapter.up, up)
    np.testing.assert_array_equal(adapter.offset, offset)
    assert (adapter.info()["base"], adapter.info()["total"]) == (38, 40)
    adapter.append(up[0], down[0])  # more rows than the window: truncated first
    assert adapter.info()["truncations"] == 1
    adapter.assign(np.zeros((0, DIM)), np.zeros((0, DIM)))
    assert adapter.info()["total"] == 0


@pytest.mark.parametrize(
    ("down", "up", "offset", "base"),
    [
        (np.zeros((2, DIM)), np.zeros((3, DIM)), None, None),
        (np.zeros((2, DIM)), np.zeros((2, DIM + 1)), None, None),
        (np.zeros((2, DIM)), np.zeros((2, DIM)), np.zeros(3), None),
        (np.zeros((2, DIM)), np.full((2, DIM), np.nan), None, None),
        (np.zeros((2, DIM)), np.zeros((2, DIM)), None, 3),
        (np.zeros((2, DIM)), np.zeros((2, DIM)), None, -1),
    ],
)
def test_assign_refuses_what_does_not_fit(down: Array, up: Array, offset: Array | None, base: int | None, rng: np.random.Generator) -> None:
    adapter, _ = grown(rng, 3)
    before = adapter.down, adapter.up, adapter.offset
    with pytest.raises(SonaValueError):
        adapter.assign(down, up, offset, base)
    for was, now in zip(before, (adapter.down, adapter.up, adapter.offset), strict=True):
        np.testing.assert_array_equal(now, was)


@pytest.mark.parametrize(
    ("up", "coef", "offset"),
    [(np.nan, 1, 0), (1, np.nan, 0), (1, np.inf, 0), (1, 1e300, 0), (1, 1, np.nan), (1, 1, np.inf), (1e30, 1e30, 0)],
)
def test_what_is_not_finite_is_never_appended(up: float, coef: float, offset: float, rng: np.random.Generator) -> None:
    adapter, dense = grown(rng, 2)
    with pytest.raises(SonaValueError):
        adapter.append(np.full(DIM, up), np.ones(DIM), coef, offset)
    x = normal(rng, DIM)
    close(added(adapter, x), dense(x))


# ---- gradients ----


def _loss(down: Array, up: Array, offset: Array, scale: float, x: Array, g: Array) -> float:
    return float(g @ (scale * up.T @ (down @ x + offset)))


@given(dim=st.integers(1, 40), pairs=st.integers(1, 6), isa=st.sampled_from(isas()), seed=st.integers(0, 2**32))
def test_gradients_are_those_of_finite_differences(dim: int, pairs: int, isa: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    adapter, _ = grown(rng, pairs, dim, scale=0.5, isa=isa)
    down, up, offset = (a.astype(np.float64) for a in (adapter.down, adapter.up, adapter.offset))
    examples = [(normal(rng, dim), normal(rng, dim)) for _ in range(2)]
    want = np.zeros((2, pairs, dim))
    for x, g in examples:
        adapter.accumulate_gradient(x, g)
        for which, rows in enumerate((down, up)):
            for at in np.ndindex(rows.shape):
                step = 1e-4 * (1 + abs(rows[at]))
                sides = []
                for sign in (1, -1):
                    moved = [down.copy(), up.copy()]
                    moved[which][at] += sign * step
                    sides.append(_loss(*moved, offset, 0.5, x, g))
                want[which][at] += (sides[0] - sides[1]) / (2 * step)
    assert adapter.accumulated == 2
    for got, exact in zip(adapter.gradients(), want, strict=True):
        close(got, exact, float(np.abs(exact).max()) * 10 + 1)


def test_apply_accumulated_moves_by_the_mean_gradient_and_clears(rng: np.random.Generator) -> None:
    adapter, _ = grown(rng, 3, micro=2)
    for _ in range(4):
        adapter.accumulate_gradient(normal(rng, DIM), normal(rng, DIM))
    down, up, gradients, base = adapter.down, adapter.up, adapter.gradients(), adapter.info()["base"]
    adapter.apply_accumulated(0.5)
    close(adapter.down, down + 0.5 * gradients[0] / 4)
    close(adapter.up, up + 0.5 * gradients[1] / 4)
    assert adapter.info()["base"] == base
    assert adapter.accumulated == 0
    assert not adapter.gradients()[0].any()
    moved = adapter.up
    adapter.apply_accumulated(0.5)
    np.testing.assert_array_equal(adapter.up, moved)


@pytest.mark.parametrize("rate", [np.nan, np.inf, -np.inf, 1e300])
def test_apply_accumulated_refuses_a_rate_that_is_not_finite(rate: float, rng: np.random.Generator) -> None:
    adapter, _ = grown(rng, 3)
    adapter.accumulate_gradient(normal(rng, DIM), normal(rng, DIM))
    up = adapter.up
    with pytest.raises(SonaValueError):
        adapter.apply_accumulated(rate)
    np.testing.assert_array_equal(adapter.up, up)
    assert adapter.accumulated == 1


@pytest.mark.parametrize("change", ["append", "fold_and_append", "truncate", "assign"])
def test_gradients_do_not_outlive_their_rows(change: str, rng: np.random.Generator) -> None:
    adapter, dense = grown(rng, 3)
    adapter.accumulate_gradient(normal(rng, DIM), normal(rng, DIM))
    match change:
        case "append":
            append(adapter, dense, rng)
        case "fold_and_append":
            adapter.fold()
            append(adapter, dense, rng)
        case "truncate":
            adapter.truncate()
        case "assign":
            adapter.assign(adapter.down, adapter.up)
    assert adapter.accumulated == 0
    up = adapter.up
    adapter.apply_accumulated(1.0)
    np.testing.assert_array_equal(adapter.up, up)
    adapter.accumulate_gradient(normal(rng, DIM), normal(rng, DIM))
    assert adapter.accumulated == 1


# ---- MicroLoRA ----


@pytest.mark.parametrize("rank", [1, 2])
def test_micro_starts_without_effect_and_can_learn(rank: int, rng: np.random.Generator, isa: str) -> None:
    micro = MicroLoRA(DIM, rank, seed=3, isa=isa)
    x = normal(rng, DIM)
    np.testing.assert_array_equal(added(micro, x), np.zeros(DIM))
    assert micro.scale == pytest.approx(rank**-0.5)
    assert micro.param_count() == 2 * rank * DIM
    assert (micro.info()["base"], micro.info()["total"]) == (0, rank)
    target = normal(rng, DIM)
    loss = [float(np.abs(target - added(micro, x)).sum())]
    for _ in range(300):
        micro.accumulate_gradient(x, target - added(micro, x))
        micro.apply_accumulated(0.03)
    loss.append(float(np.abs(target - added(micro, x)).sum()))
    assert loss[1] < 0.01 * loss[0]
    np.testing.assert_array_equal(MicroLoRA(DIM, rank, seed=3).down, MicroLoRA(DIM, rank, seed=3).down)


@pytest.mark.parametrize("rank", [1, 2])
def test_micro_observes_exact_pairs(rank: int, rng: np.random.Generator) -> None:
    micro, dense = MicroLoRA(DIM, rank), Dense(DIM)
    for number in range(rank):
        x, v = normal(rng, DIM), normal(rng, DIM)
        assert micro.observe(x, v, 0.5) < 1e-4  # all that is dropped is the initial `down`, which adds nothing
        dense.append(v, x, 0.5)
        assert micro.info()["total"] <= rank, number
    x = normal(rng, DIM)
    close(added(micro, x), dense(x))
    s = np.linalg.svd(dense.matrix + 3 * np.outer(x, x), compute_uv=False)
    assert micro.observe(x, x, 3.0) == pytest.approx((s[rank:] ** 2).sum() / (s**2).sum(), abs=1e-5)


# ---- BaseLoRA ----


def trained_base(rng: np.random.Generator, layers: int = 3, **options: Any) -> BaseLoRA:
    base = BaseLoRA(DIM, 4, layers, **options)
    for layer in base.layers:
        for _ in range(5):
            layer.append(normal(rng, DIM), normal(rng, DIM), 0.3)
    return base


def test_merge_weights_agrees_with_forward_layer(rng: np.random.Generator, isa: str) -> None:
    base, weights, x = trained_base(rng, isa=isa), normal(rng, DIM, DIM), normal(rng, DIM)
    for layer in range(3):
        merged, out = weights.copy(), (x @ weights).astype(np.float32)
        base.merge_weights(merged, layer)
        base.forward_layer(layer, x, out)
        close(x @ merged, out, 100.0)


def test_base_forward_is_every_layer(rng: np.random.Generator) -> None:
    base = trained_base(rng)
    x, out = normal(rng, 3, DIM), np.zeros((3, DIM), np.float32)
    base.forward(x, out)
    for layer in range(3):
        np.testing.assert_array_equal(out[layer], added(base.layers[layer], x[layer]))
    assert base.param_count() == 3 * 2 * 5 * DIM


def test_base_survives_save_and_load(rng: np.random.Generator, tmp_path: Path) -> None:
    base = trained_base(rng)
    base.layers[1].append(normal(rng, DIM), normal(rng, DIM), 1.0, 0.5)
    for _ in range(30):
        base.layers[2].append(normal(rng, DIM), normal(rng, DIM))  # truncated, grown
    base.layers[0].assign(np.zeros((0, DIM)), np.zeros((0, DIM)))
    base.save(tmp_path / "base.safetensors")
    loaded = BaseLoRA.load(tmp_path / "base.safetensors")
    assert (loaded.hidden_dim, len(loaded.layers)) == (DIM, 3)
    x = normal(rng, 3, DIM)
    outs = np.zeros((2, 3, DIM), np.float32)
    base.forward(x, outs[0])
    loaded.forward(x, outs[1])
    close(outs[1], outs[0])
    loaded.layers[2].append(normal(rng, DIM), normal(rng, DIM))  # it goes on learning


def _truncated(data: bytes) -> bytes:
    return data[:-40]


def _header_damaged(data: bytes) -> bytes:
    return data[:20] + b"\xff" + data[21:]


def _huge_header(data: bytes) -> bytes:
    return (1 << 60).to_bytes(8, "little") + data[8:]


def _not_finite(data: bytes) -> bytes:
    return data[:-4] + np.float32(np.nan).tobytes()


@pytest.mark.parametrize("damage", [_truncated, _header_damaged, _huge_header, _not_finite, lambda _: b"", lambda _: b"x" * 300])
def test_base_load_refuses_damage(damage: Callable[[bytes], bytes], rng: np.random.Generator, tmp_path: Path) -> None:
    path = tmp_path / "base.safetensors"
    trained_base(rng).save(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(SonaCorruptError, match=r"base\.safetensors"):
        BaseLoRA.load(path)


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"weight": np.zeros((2, 2), np.float32)},
        {"0.down": np.zeros((2, 3), np.float32), "0.up": np.zeros((2, 3), np.float32)},
        {"0.down": np.zeros((2, 3), np.float32), "0.up": np.zeros((2, 4), np.float32), "0.offset": np.zeros(2, np.float32)},
        {"0.down": np.zeros((2, 3), np.float32), "0.up": np.zeros((2, 3), bool), "0.offset": np.zeros(2, np.float32)},
        {"0.down": np.zeros(3, np.float32), "0.up": np.zeros(3, np.float32), "0.offset": np.zeros(2, np.float32)},
        {"9.down": np.zeros((2, 3), np.float32), "9.up": np.zeros((2, 3), np.float32), "9.offset": np.zeros(2, np.float32)},
    ],
)
def test_base_load_refuses_other_files(arrays: dict[str, Array], tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file(arrays, tmp_path / "other.safetensors")
    with pytest.raises(SonaCorruptError):
        BaseLoRA.load(tmp_path / "other.safetensors")


def test_base_load_of_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        BaseLoRA.load(tmp_path / "none.safetensors")


@pytest.mark.parametrize("layer", [-1, 3])
def test_base_refuses_layers_it_does_not_have(layer: int) -> None:
    base, x = BaseLoRA(DIM, 4, 3), np.zeros(DIM, np.float32)
    with pytest.raises(SonaValueError, match="expected 0 to 2"):
        base.forward_layer(layer, x, x)
    with pytest.raises(SonaValueError, match="expected 0 to 2"):
        base.merge_weights(np.zeros((DIM, DIM), np.float32), layer)


# ---- fold ----


@given(source_pairs=st.integers(0, 8), target_pairs=st.integers(0, 8), seed=st.integers(0, 2**32))
def test_fold_keeps_the_sum(source_pairs: int, target_pairs: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    source, a = grown(rng, source_pairs, scale=0.5)
    target, b = grown(rng, target_pairs, rank=16, scale=2.0)
    x = normal(rng, DIM)
    assert fold(source, target) < 1e-9
    close(added(target, x), a(x) + b(x), float(np.abs(a.matrix).sum() + np.abs(b.matrix).sum() + 1))
    assert not added(source, x).any()
    assert source.info()["total"] == 0
    assert target.info()["base"] == target.info()["total"]


def test_fold_reports_what_did_not_fit(rng: np.random.Generator) -> None:
    q = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0].astype(np.float32)
    source, target = Adapter(DIM, rank=8), Adapter(DIM, rank=2, rank_max=2, window=2)
    for row in range(8):
        source.append(q[row], q[row])
    lost = fold(source, target)
    assert lost > 0.5
    assert lost == pytest.approx(target.info()["discarded_sum"])


def test_fold_refuses_what_makes_no_sense(rng: np.random.Generator) -> None:
    adapter, _ = grown(rng, 2)
    with pytest.raises(SonaValueError, match="same one twice"):
        fold(adapter, adapter)
    with pytest.raises(SonaValueError, match="expected equal dims, got 21 into 22"):
        fold(adapter, Adapter(22))
    assert adapter.info()["total"] == 2


# ---- arguments ----


def _misaligned(x: Array) -> Array:
    raw = np.zeros(x.nbytes + 1, np.uint8)
    raw[1:] = np.frombuffer(x.tobytes(), np.uint8)
    return raw[1:].view(np.float32)


def _read_only(x: Array) -> Array:
    x = x.copy()
    x.flags.writeable = False
    return x


ACCEPTED: dict[str, Callable[[Array], Any]] = {
    "float64": lambda x: x.astype(np.float64),
    "float16": lambda x: x.astype(np.float16),
    "longdouble": lambda x: x.astype(np.longdouble),
    "int8": lambda x: (10 * x).astype(np.int8),
    "uint64": lambda x: np.abs(10 * x).astype(np.uint64),
    "big-endian": lambda x: x.astype(">f4"),
    "big-endian float64": lambda x: x.astype(">f8"),
    "strided": lambda x: np.repeat(x, 3)[::3],
    "reversed": lambda x: x[::-1].copy()[::-1],
    "Fortran column": lambda x: np.asfortranarray(np.stack([x, x], axis=1))[:, 1],
    "misaligned": _misaligned,
    "read-only": _read_only,
    "list": lambda x: x.tolist(),
    "tuple": lambda x: tuple(x.tolist()),
    "subnormal": lambda x: x * np.float32(1e-40),
}


@pytest.mark.parametrize("kind", ACCEPTED)
def test_any_array_of_numbers_is_accepted(kind: str, rng: np.random.Generator, isa: str) -> None:
    adapter, dense = grown(rng, 3, isa=isa)
    given_x = ACCEPTED[kind](normal(rng, DIM))
    kept = np.array(given_x, dtype=np.float64)
    close(added(adapter, np.zeros(DIM, np.float32)), dense(np.zeros(DIM)))
    out = np.zeros(DIM, np.float32)
    adapter.forward(given_x, out)
    close(out, dense(kept), 100.0)
    rows = np.zeros((1, DIM), np.float32)
    adapter.forward_batch([given_x] if isinstance(given_x, list | tuple) else given_x[None], rows)
    close(rows[0], dense(kept), 100.0)
    np.testing.assert_array_equal(np.array(given_x, dtype=np.float64), kept)


REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "too short": (np.zeros(DIM - 1), SonaValueError, rf"x: expected shape \({DIM},\), got \({DIM - 1},\)"),
    "too long": (np.zeros(DIM + 1), SonaValueError, "expected shape"),
    "0-d": (np.float32(1), SonaValueError, "expected shape"),
    "2-d": (np.zeros((1, DIM)), SonaValueError, "expected shape"),
    "3-d": (np.zeros((1, 1, DIM)), SonaValueError, "expected shape"),
    "empty": (np.zeros(0), SonaValueError, "expected shape"),
    "float64 beyond float32": (np.full(DIM, 1e300), SonaValueError, "finite float32 values"),
    "float64 NaN": (np.full(DIM, np.nan), SonaValueError, "finite float32 values"),
    "float64 infinity": (np.full(DIM, -np.inf), SonaValueError, "finite float32 values"),
    "object": (np.array([1.0] * DIM, dtype=object), SonaTypeError, "dtype object"),
    "strings": (np.array(["1"] * DIM), SonaTypeError, "real numbers"),
    "bool": (np.zeros(DIM, bool), SonaTypeError, "dtype bool"),
    "complex": (np.zeros(DIM, complex), SonaTypeError, "dtype complex128"),
    "ragged": ([[1.0], [1.0, 2.0]], SonaTypeError, "array of numbers"),
    "None": (None, SonaTypeError, "dtype object"),
    "text": ("x", SonaTypeError, "real numbers"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_anything_else_is_refused_before_a_byte_changes(kind: str, rng: np.random.Generator) -> None:
    value, error, message = REFUSED[kind]
    adapter, dense = grown(rng, 3)
    out = normal(rng, DIM)
    before = out.copy()
    with pytest.raises(error, match=message):
        adapter.forward(value, out)
    with pytest.raises(error):
        adapter.append(value, np.ones(DIM))
    with pytest.raises(error):
        adapter.append(np.ones(DIM), value)
    with pytest.raises(error):
        adapter.accumulate_gradient(value, np.ones(DIM))
    np.testing.assert_array_equal(out, before)
    x = normal(rng, DIM)
    close(added(adapter, x), dense(x))


def test_nan_in_x_stays_in_that_output(rng: np.random.Generator, isa: str) -> None:
    """The hot path does not look for NaN: what it is given it passes on, and keeps nothing of it."""
    adapter, dense = grown(rng, 3, isa=isa)
    x = normal(rng, DIM)
    poisoned = x.copy()
    poisoned[4] = np.nan
    assert np.isnan(added(adapter, poisoned)).all()
    close(added(adapter, x), dense(x))


def test_outputs_must_be_float32_contiguous_and_writeable(rng: np.random.Generator) -> None:
    adapter, _ = grown(rng, 2)
    x = normal(rng, DIM)
    frozen = _read_only(x)
    for out, error, message in [
        (frozen, SonaValueError, "read-only"),
        (np.zeros(DIM), SonaTypeError, "expected dtype float32, got float64"),
        (np.zeros(DIM, ">f4"), SonaTypeError, "expected dtype float32"),
        (np.zeros(2 * DIM, np.float32)[::2], SonaValueError, "C-contiguous"),
        (_misaligned(x), SonaValueError, "aligned"),
        (np.zeros(DIM + 1, np.float32), SonaValueError, "expected shape"),
        ([0.0] * DIM, SonaTypeError, "expected a float32 array"),
    ]:
        with pytest.raises(error, match=message):
            adapter.forward(x, out)
    with pytest.raises(SonaValueError, match="read-only"):
        adapter.forward_batch(x[None], frozen[None])
    np.testing.assert_array_equal(frozen, x)


@pytest.mark.parametrize("shift", [0, 1, 7, -1, -7, DIM - 1])
def test_overlapping_input_and_output(shift: int, rng: np.random.Generator, isa: str) -> None:
    """The result is that of the input as it was at the call."""
    adapter, dense = grown(rng, 40, isa=isa)
    memory = normal(rng, 3 * DIM)
    x, out = memory[DIM : 2 * DIM], memory[DIM + shift : 2 * DIM + shift]
    want = out + dense(x)
    adapter.forward(x, out)
    close(out, want)


@pytest.mark.parametrize("shift", [0, 1, -1])
def test_overlapping_batches(shift: int, rng: np.random.Generator) -> None:
    adapter, dense = grown(rng, 3)
    memory = normal(rng, 6, DIM)
    x, out = memory[1:5], memory[1 + shift : 5 + shift]
    want = out + np.stack([dense(row) for row in x])
    adapter.forward_batch(x, out)
    close(out, want, 100.0)


@pytest.mark.parametrize("shape", [(0, DIM), (DIM,), (2, DIM - 1), (1, 1, DIM)])
def test_batches_have_rows(shape: tuple[int, ...]) -> None:
    with pytest.raises(SonaValueError):
        Adapter(DIM).forward_batch(np.zeros(shape, np.float32), np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    "options",
    [
        {"dim": 0},
        {"dim": -1},
        {"dim": 1 << 40},
        {"rank": 0},
        {"rank": -1},
        {"rank": 5, "rank_max": 4},
        {"micro": 0},
        {"window": -1},
        {"window": 1 << 62},
        {"max_discard": 1.0},
        {"max_discard": -0.1},
        {"max_discard": np.nan},
        {"scale": 0.0},
        {"scale": -1.0},
        {"scale": np.nan},
        {"scale": np.inf},
        {"isa": "mmx"},
    ],
)
def test_adapter_refuses_sizes_and_factors_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(SonaValueError):
        Adapter(**({"dim": DIM} | options))


@pytest.mark.parametrize(
    "make",
    [
        lambda: MicroLoRA(DIM, 0),
        lambda: MicroLoRA(DIM, 3),
        lambda: MicroLoRA(DIM, -1),
        lambda: MicroLoRA(1, 2),
        lambda: MicroLoRA(0),
        lambda: BaseLoRA(DIM, 0),
        lambda: BaseLoRA(DIM, DIM + 1),
        lambda: BaseLoRA(0),
        lambda: BaseLoRA(DIM, 4, 0),
        lambda: BaseLoRA(DIM, 4, -1),
        lambda: BaseLoRA(DIM, 4, 1, rank_max=2),
    ],
)
def test_loras_refuse_ranks_and_sizes_out_of_range(make: Callable[[], object]) -> None:
    with pytest.raises(SonaValueError, match="expected"):
        make()


def test_unknown_options_are_refused() -> None:
    for make in (lambda: Adapter(DIM, ranks=2), lambda: MicroLoRA(DIM, ranks=2), lambda: BaseLoRA(DIM, ranks=2)):
        with pytest.raises(TypeError):
            make()


def test_memory_that_does_not_exist_is_a_memory_error() -> None:
    with pytest.raises(MemoryError):
        Adapter((1 << 32) - 1, rank=1 << 20, rank_max=1 << 20)
