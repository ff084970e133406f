"""What stands in for a module's forward: the module's own outputs corrected, whoever calls it and however the tensors lie."""

import copy
import pickle
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sona import SonaEngine, SonaTypeError, SonaValueError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from torch_models import IDS, bert, merge, out, teach  # noqa: E402

from sona.ext.torch import attach  # noqa: E402

nn = torch.nn
WIDTHS = [(8, 8), (8, 5), (5, 8), (160, 120)]


def plain(n_in: int = 8, n_out: int = 8) -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(n_in, n_out), nn.Tanh(), nn.Linear(n_out, n_out)).eval()


@pytest.mark.parametrize("by_exchange", [True, False])
@pytest.mark.parametrize(("n_in", "n_out"), WIDTHS)
def test_tensors_of_any_layout_get_what_merged_weights_would_give(n_in: int, n_out: int, by_exchange: bool):
    model = plain(n_in, n_out)
    with attach(model, ["0"], base_lora_rank=80, base_lora_rank_max=80) as attached, torch.no_grad():
        (place,) = attached._places
        if by_exchange and not place.by_exchange:
            pytest.skip("torch before 2.10")
        place.by_exchange = by_exchange
        for seed in range(70 if n_in == 5 else 3):  # more than what is worked on at once
            teach(attached, seed, 0.3 / n_in)
        merged = merge(plain(n_in, n_out), attached)
        x = torch.randn(300, n_in)  # long enough to leave the GIL at the largest width
        views = [x, x[:1], x[0], x[None, :, None], x.T.contiguous().T, x[::2], x[:1].expand(4, n_in), x[:0], x.double().float()]
        for view in views:
            torch.testing.assert_close(model(view), merged(view), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(model[0](input=x), merged[0](x), atol=1e-5, rtol=1e-4)
        y = merged(x)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(model(x).float(), y, atol=0.1, rtol=0.1)


def test_a_correction_of_nothing_changes_no_bit():
    model = bert()
    bare = out(model)
    for layers in ("residual", ["*.attention.self.query", "*.intermediate.dense"]):
        with attach(model, layers) as attached:
            for adapter in attached.engine.adapters:
                adapter.assign(np.ones((2, adapter.dim), np.float32), np.zeros((2, adapter.dim), np.float32))
            assert torch.equal(out(model), bare)


def test_what_a_block_returned_before_is_left_as_it_is():
    class Same(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(4)

        def forward(self, x: Any) -> Any:
            return x, "more"

    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Dropout()), Same()).eval()
    model.config = SimpleNamespace(hidden_size=4)
    with attach(model, ["1", "2"]) as attached, torch.no_grad():
        teach(attached)
        x = torch.randn(3, 4)
        y = model[0](x)
        kept = y.clone()
        changed, more = model[2](y)
        assert more == "more"
        assert torch.equal(y, kept)
        assert not torch.allclose(changed, y)
        assert not torch.allclose(model[1](y), y)
        assert torch.equal(y, kept)


def encoder() -> tuple[Any, Callable[..., Any]]:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 24, batch_first=True), 2).eval()
    x, mask = torch.randn(3, 5, 16), torch.arange(5)[None] >= torch.tensor([[5], [3], [4]])

    def call(of: Any = model, masked: bool = True) -> Any:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nested tensors are a prototype
            y = of(x, src_key_padding_mask=mask if masked else None)
            return y[~mask] if masked else y

    return model, call


@pytest.mark.parametrize("masked", [False, True])
def test_the_fused_path_of_torchs_own_encoder_does_not_go_past_adapters(masked: bool):
    model, call = encoder()
    bare = call(masked=masked)
    with attach(model, ["layers.0.linear1", "layers.1.linear2"]) as attached:
        teach(attached)
        assert not torch.allclose(call(masked=masked), bare, atol=1e-2)
        torch.testing.assert_close(call(masked=masked), call(merge(encoder()[0], attached), masked), atol=1e-5, rtol=1e-4)
    assert torch.equal(call(masked=masked), bare)
    with attach(model, "residual") as attached:
        teach(attached)
        assert not torch.allclose(call(masked=masked), bare, atol=1e-2)
    assert torch.equal(call(masked=masked), bare)
    assert model.use_nested_tensor


def test_a_module_whose_weights_are_used_without_calling_it_is_refused():
    with pytest.raises(SonaValueError, match=r"layers\.0\.self_attn\.out_proj"):
        attach(encoder()[0], ["layers.*"])


def test_rows_with_their_own_engines_are_what_each_would_be_alone():
    model, layers = bert(), ["*.attention.self.query", "*.intermediate.dense"]
    with attach(model, layers) as attached, SonaEngine(attached.engine.config) as other, SonaEngine(attached.engine.config) as off:
        teach(attached)
        for adapter, source in zip(other.adapters, attached.engine.adapters, strict=True):
            adapter.assign(source.down, -source.up)
            off.adapters[0].assign(source.down, source.up)
        off.enabled = False
        engines = [attached.engine, None, other, off, other]
        ids = torch.arange(40).reshape(5, 8) % 30
        with attached.using(engines):
            mixed = out(model, input_ids=ids)
            with torch.enable_grad():
                slow = model(ids).last_hidden_state.detach()
        torch.testing.assert_close(mixed, slow, atol=1e-5, rtol=1e-4)
        for row, engine in enumerate(engines):
            with attached.using([engine]):
                torch.testing.assert_close(mixed[row : row + 1], out(model, input_ids=ids[row : row + 1]), atol=1e-5, rtol=1e-4)


def test_others_who_replace_a_forward_find_and_leave_theirs():
    model = plain()
    x = torch.randn(2, 8)
    bare, own = model(x), model[0].forward

    def below(x: Any) -> Any:
        return own(x) + 1

    model[0].forward = below
    with attach(model, ["0"]) as attached, torch.no_grad():
        teach(attached)
        ours = model[0].forward
        changed = model[0](x)
        model[0].forward = lambda x: ours(x) + 2
        torch.testing.assert_close(model[0](x), changed + 2)
    assert torch.equal(model[0](x), own(x) + 1 + 2)  # detached below somebody else: it stays and adds nothing
    model[0].forward = below
    attach(model, ["0"]).close()
    assert model[0].forward is below
    del model[0].forward
    assert torch.equal(model(x), bare)
    attach(model, ["0"]).close()
    assert "forward" not in vars(model[0])


def test_a_copied_model_has_weights_of_its_own_and_the_same_adapters():
    model = plain()
    x = torch.randn(2, 8)
    bare = model(x)
    with attach(model, ["0", "2"]) as attached, torch.no_grad():
        teach(attached)
        y = model(x)
        twin = copy.deepcopy(model)
        torch.testing.assert_close(twin(x), y)
        twin[0].weight.zero_()
        assert not torch.allclose(twin(x), y, atol=1e-3)
        torch.testing.assert_close(model(x), y)
        attached.engine.adapters[0].assign(np.zeros((0, 8), np.float32), np.zeros((0, 8), np.float32))
        assert not torch.allclose(model(x), y, atol=1e-3)
        with pytest.raises(SonaTypeError, match="detach"):
            pickle.dumps(model)
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again(x), bare)


def test_going_back_under_a_model_that_serves_changes_one_layer_after_the_other():
    """`restore` swaps layer by layer: each output is of old or new in each, and the last is what was restored."""
    model = bert()
    with attach(model, "residual") as attached:
        teach(attached, 0)
        before = attached.engine.state()
        teach(attached, 1)
        after, seen = attached.engine.state(), []
        for first in (before, after):
            for second in (before, after):
                attached.engine.restore(second)
                mixed = attached.engine.adapters[1].rows()
                attached.engine.restore(first)
                attached.engine.adapters[1].assign(*mixed)
                seen.append(out(model))
        attached.engine.restore(after)
        stop, wrong, served = threading.Event(), [], []

        def serve() -> None:
            while not stop.is_set():
                y = out(model)
                served.append(1)
                if not any(torch.allclose(y, one, atol=1e-5) for one in seen):
                    wrong.append(y)

        with ThreadPoolExecutor(2) as threads:
            serving = [threads.submit(serve) for _ in range(2)]
            for n in range(60):
                attached.engine.restore(before if n % 2 == 0 else after)
            stop.set()
        for each in serving:
            each.result()
        assert served
        assert not wrong
        attached.engine.restore(before)
        torch.testing.assert_close(out(model), seen[0], atol=1e-5, rtol=1e-4)


def test_versions_come_and_go_under_a_pooled_model_that_serves(tmp_path: Path):
    y = torch.randn(4, 16)
    with attach(bert(), store=tmp_path / "s.db") as attached:
        engine, kept, outputs = attached.engine, [], []
        for seed in (0, 1):
            teach(attached, seed)
            kept.append(engine.keep_version(f"taught {seed}"))
            outputs.append(attached.pooled(y).detach())
        stop, wrong, served = threading.Event(), [], []

        def serve() -> None:
            with torch.inference_mode():
                while not stop.is_set():
                    z = attached.pooled(y)
                    served.append(1)
                    if not any(torch.allclose(z, one, atol=1e-5) for one in outputs):
                        wrong.append(z)

        with ThreadPoolExecutor(1) as thread:
            serving = thread.submit(serve)
            for n in range(10):
                engine.publish(kept[n % 2]) if n % 2 else engine.rollback(kept[n % 2])
            stop.set()
        serving.result()
        assert served
        assert not wrong
        torch.testing.assert_close(attached.pooled(y), outputs[1], atol=1e-5, rtol=1e-4)


def test_a_rollback_brings_every_hooked_layer_back(tmp_path: Path):
    model = bert()
    with attach(model, "residual", store=tmp_path / "s.db") as attached:
        engine, kept, outputs = attached.engine, [], []
        for seed in (0, 1):
            teach(attached, seed)
            kept.append(engine.keep_version())
            outputs.append(out(model))
        assert not torch.allclose(*outputs, atol=1e-3)
        for n in (0, 1, 0):
            engine.rollback(kept[n])
            torch.testing.assert_close(out(model), outputs[n], atol=1e-5, rtol=1e-4)
    with attach(model, "residual", store=tmp_path / "s.db"):
        torch.testing.assert_close(out(model), outputs[0], atol=1e-5, rtol=1e-4)


def test_a_recorded_request_and_rows_of_another_thread_change_nothing_for_this_one(monkeypatch: pytest.MonkeyPatch):
    model, main = bert(), threading.get_ident()
    with attach(model, "residual") as attached, ThreadPoolExecutor(1) as thread:
        teach(attached)
        y, added = out(model), attached._added

        def here(*arguments: Any) -> Any:
            assert threading.get_ident() == main  # the other thread takes the short way
            return added(*arguments)

        monkeypatch.setattr(attached, "_added", here)
        with attached.record() as request:
            recorded = model(IDS[:1]).last_hidden_state
            assert torch.equal(thread.submit(out, model).result(), y)
        assert {number: len(passes) for number, passes in request.seen.items()} == {0: 1, 1: 1}
        torch.testing.assert_close(recorded.detach(), y[:1], atol=1e-5, rtol=1e-4)
        with attached.using([None] * 3):
            assert not torch.allclose(out(model), y, atol=1e-3)
            assert torch.equal(thread.submit(out, model).result(), y)
