"""What was learned, as files of others: each is read back by the program that it is for, or refused with the reason."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import sona
import sona.contents
from sona.cli import main
from sona.errors import MissingExtraError, SonaCorruptError, SonaStoreError, SonaValueError
from sona.ext.files import as_bytes, as_floats, safetensors_bytes
from sona.ext.gguf import write_gguf
from sona.ext.layers import Kind, Layer, Layers, get_layers
from sona.ext.merged import write_dense, write_factors, write_merged
from sona.ext.peft import engine_from_peft, write_peft
from sona.ext.stored import Corrections, corrections

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.* is deprecated:FutureWarning")  # peft 0.21 asks transformers

D = 24
NAMES = {
    "bert": ("encoder.layer.{}.attention.self.query", "encoder.layer.{}.intermediate.dense", "encoder.layer.{}.output.dense"),
    "llama": ("model.layers.{}.self_attn.q_proj", "model.layers.{}.self_attn.k_proj", "model.layers.{}.mlp.down_proj"),
    "gpt2": ("transformer.h.{}.attn.c_attn", "transformer.h.{}.mlp.c_proj"),
}


def layer(name: str, kind: Kind, inner: int, out: int) -> Layer:
    return Layer(name=name, kind=kind, in_features=inner, out_features=out)


def tiny(kind: str):  # type: ignore[no-untyped-def]
    """A random model of two blocks, and tokens for it."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    if kind == "bert":
        config = transformers.BertConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, max_position_embeddings=32
        )
        model = transformers.BertModel(config)
    elif kind == "llama":
        config = transformers.LlamaConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=24
        )
        model = transformers.LlamaForCausalLM(config)
    else:
        config = transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32)
        model = transformers.GPT2LMHeadModel(config)
    return model.eval(), torch.arange(18).reshape(2, 9) % 50


def taught(rng: np.random.Generator, layers: Layers, *, ranks: list[int], bias: float = 0.0) -> sona.SonaEngine:
    """An engine with random corrections, zero beyond each layer's widths, of several ranks; one row in the micro tier."""
    width = max(max(layer.in_features, layer.out_features) for layer in layers.layers)
    engine = sona.SonaEngine(sona.SonaConfig(hidden_dim=width, num_layers=len(layers.layers), precondition="identity"))
    for layer, adapter, rank in zip(layers.layers, engine.adapters, ranks, strict=True):
        down, up = (rng.normal(size=(rank, width)).astype(np.float32) * 0.3 for _ in range(2))
        down[:, layer.in_features :] = 0
        up[:, layer.out_features :] = 0
        adapter.assign(down, up, (bias * rng.normal(size=rank)).astype(np.float32), rank - 1)
    return engine


def layers_of(kind: str) -> Layers:
    """Some of the layers of `tiny(kind)`, from 16 to 24, 48 or 64 wide."""
    widths = {"query": (16, 16), "q_proj": (16, 16), "k_proj": (16, 8), "c_attn": (16, 48), "c_proj": (64, 16)}
    widths |= {"intermediate.dense": (16, 24), "output.dense": (24, 16), "down_proj": (24, 16)}
    found = []
    for block in range(2):
        for pattern in NAMES[kind]:
            inner, out = next(shape for end, shape in widths.items() if pattern.endswith(end))
            found.append(layer(pattern.format(block), "linear", inner, out))
    return Layers(layers=tuple(found), base_model="tiny", model_type=kind)


def output(model, tokens):  # type: ignore[no-untyped-def]
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        return model(tokens)[0].numpy()


def hooked(model, engine: sona.SonaEngine, layers: Layers, tokens):  # type: ignore[no-untyped-def]
    """What the model says with the engine's corrections added by hand: the oracle of every export."""
    torch = pytest.importorskip("torch")
    handles = []
    for index, layer in enumerate(layers.layers):

        def hook(module, args, y, index=index, layer=layer):  # type: ignore[no-untyped-def]
            x = args[0].reshape(-1, layer.in_features).numpy()
            wide = np.zeros((len(x), engine.config.hidden_dim), np.float32)
            wide[:, : layer.in_features] = x
            delta = engine.apply_batch(wide, layer=index) - wide
            return y + torch.from_numpy(delta[:, : layer.out_features]).reshape(y.shape)

        handles.append(model.get_submodule(layer.name).register_forward_hook(hook))
    try:
        return output(model, tokens)
    finally:
        for handle in handles:
            handle.remove()


@pytest.fixture(params=sorted(NAMES))
def named(request: pytest.FixtureRequest, rng: np.random.Generator) -> Iterator[tuple[str, sona.SonaEngine, Corrections]]:
    """A kind of model, an engine beside it, and the engine's corrections; those of "bert" have learned constants."""
    layers = layers_of(request.param)
    ranks = [1 + index % 3 for index in range(len(layers.layers))]
    with taught(rng, layers, ranks=ranks, bias=0.2 if request.param == "bert" else 0.0) as engine:
        yield request.param, engine, corrections(engine, layers=layers)


# ---- PEFT ----


@pytest.mark.slow
def test_peft_loads_what_was_written_and_says_the_same(named, tmp_path: Path):  # type: ignore[no-untyped-def]
    peft = pytest.importorskip("peft")
    kind, engine, found = named
    model, tokens = tiny(kind)
    expected = hooked(model, engine, found.layers, tokens)
    assert np.abs(expected - output(model, tokens)).max() > 0.01
    loaded = peft.PeftModel.from_pretrained(model, str(write_peft(found, tmp_path / "lora"))).eval()
    np.testing.assert_allclose(output(loaded, tokens), expected, atol=1e-5)


def test_a_lora_of_peft_is_the_base_of_an_engine_and_comes_back_as_it_was(named, tmp_path: Path):  # type: ignore[no-untyped-def]
    kind, _, found = named
    where = write_peft(found, tmp_path / "lora")
    if kind == "bert":  # learned constants: lora_bias
        with pytest.raises(SonaValueError, match="without lora_bias"):
            engine_from_peft(where)
        return
    again, layers = engine_from_peft(where, store=tmp_path / "sona.db", name="lora")
    again.close()
    assert sorted(layers.layers, key=repr) == sorted(found.layers.layers, key=repr)
    assert get_layers(sona.SqliteStore(tmp_path / "sona.db"), "lora") == layers
    (seen,) = sona.contents.contents(tmp_path / "sona.db")["namespaces"].values()
    assert (list(seen["states"]), seen["faults"]) == (["lora"], [])  # the names of layers are no state of a learner
    assert main(["export", str(tmp_path / "sona.db"), "--name", "lora", "--peft", str(tmp_path / "again")]) == 0
    kept = corrections(tmp_path / "sona.db", name="lora")
    deltas = {change.layer.name: change.up @ change.down for change in found.linear("test")}
    for change in kept.linear("test"):
        np.testing.assert_allclose(change.up @ change.down, deltas[change.layer.name], atol=1e-6)
    with pytest.raises(SonaValueError, match="without a state"):
        engine_from_peft(where, store=tmp_path / "sona.db", name="lora")


@pytest.mark.slow
@pytest.mark.parametrize(
    "kwargs", [{"r": 4, "lora_alpha": 6, "use_rslora": True}, {"r": 3, "lora_alpha": 1, "alpha_pattern": {"k_proj": 9}}]
)
def test_what_peft_trained_is_read_with_its_scale(kwargs: dict[str, object], tmp_path: Path):
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    model, tokens = tiny("llama")
    trained = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "k_proj"], init_lora_weights=False, **kwargs)).eval()
    expected = output(trained, tokens)
    trained.save_pretrained(tmp_path / "lora")
    plain = trained.unload()
    engine, layers = engine_from_peft(tmp_path / "lora")
    with engine, torch.no_grad():
        np.testing.assert_allclose(hooked(plain, engine, layers, tokens), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "without DoRA"),
        ({"bias": "all"}, "expected bias='none', got 'all'"),
        ({"modules_to_save": ["classifier"]}, "without modules_to_save"),
        ({"peft_type": "IA3"}, "expected an adapter of peft_type LORA, got 'IA3'"),
    ],
)
def test_what_is_no_plain_lora_is_refused(change: dict[str, object], message: str, tmp_path: Path, rng: np.random.Generator):
    layers = Layers(layers=(layer("a.b", "linear", D, D),))
    with taught(rng, layers, ranks=[2]) as engine:
        where = write_peft(corrections(engine, layers=layers), tmp_path)
    config = json.loads((where / "adapter_config.json").read_text())
    (where / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(SonaValueError, match=message):
        engine_from_peft(where)


def test_files_that_do_not_fit_are_refused(tmp_path: Path, rng: np.random.Generator):
    save = pytest.importorskip("safetensors.numpy").save_file
    layers = Layers(layers=(layer("a.b", "linear", D, D),))
    with taught(rng, layers, ranks=[2]) as engine:
        where = write_peft(corrections(engine, layers=layers), tmp_path)
    about = json.loads((where / "adapter_config.json").read_text())
    for wrong in ({"lora_alpha": "x"}, {"alpha_pattern": {"(": 2}}, {"alpha_pattern": [1]}):
        (where / "adapter_config.json").write_text(json.dumps(about | wrong))
        with pytest.raises(SonaCorruptError, match="expected lora_alpha and alpha_pattern with numbers"):
            engine_from_peft(where)
    (where / "adapter_config.json").write_text(json.dumps(about))
    weights = where / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-4])
    with pytest.raises(SonaCorruptError, match="got: a tensor at 192 to 384 of 380 bytes"):
        engine_from_peft(where)
    weights.write_bytes(b"\xff" * 64)
    with pytest.raises(SonaCorruptError, match="expected a safetensors file"):
        engine_from_peft(where)
    key = "base_model.model.a.b.lora_{}.weight"
    save({key.format("A"): np.ones((2, D), np.float32), key.format("B"): np.ones((D, 3), np.float32)}, weights)
    with pytest.raises(SonaCorruptError, match=r"lora_B \(out, rank\)"):
        engine_from_peft(where)
    save({"base_model.model.a.lora_embedding_A": np.ones((2, D), np.float32)}, weights)
    with pytest.raises(SonaValueError, match="of linear layers only"):
        engine_from_peft(where)
    with pytest.raises(SonaStoreError, match="No such file"):
        engine_from_peft(tmp_path / "nowhere")


# ---- merged ----


@pytest.mark.slow
def test_a_merged_checkpoint_says_the_same_without_sona(named, tmp_path: Path):  # type: ignore[no-untyped-def]
    kind, engine, found = named
    model, tokens = tiny(kind)
    expected = hooked(model, engine, found.layers, tokens)
    model.save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "pytorch_model.bin").write_bytes(b"not merged")
    where = write_merged(found, tmp_path / "base", tmp_path / "merged")
    assert not (where / "pytorch_model.bin").exists()
    again = type(model).from_pretrained(where).eval()
    np.testing.assert_allclose(output(again, tokens), expected, atol=1e-5)
    with pytest.raises(SonaStoreError, match="does not exist yet"):
        write_merged(found, tmp_path / "base", tmp_path / "merged")


def test_a_merge_that_fails_leaves_nothing(tmp_path: Path, rng: np.random.Generator):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text('{"model_type": "llama"}')
    weights = {"model.layers.0.self_attn.q_proj.weight": np.eye(16, dtype=np.float32), "lm_head.weight": np.ones((3, 16), np.float16)}
    (tmp_path / "base" / "model.safetensors").write_bytes(safetensors_bytes(weights, {}))
    for wrong, message in [
        (layer("model.layers.7.self_attn.q_proj", "linear", 16, 16), "got 0 that end so"),
        (layer("model.layers.0.self_attn.q_proj", "linear", 16, 24), r"expected shape \(24, 16\) in the model, got \(16, 16\)"),
    ]:
        layers = Layers(layers=(wrong,))
        with taught(rng, layers, ranks=[2]) as engine, pytest.raises(SonaValueError, match=message):
            write_merged(corrections(engine, layers=layers), tmp_path / "base", tmp_path / "out")
    layers = Layers(layers=(layer("model.layers.0.self_attn.q_proj", "linear", 16, 16),))
    with taught(rng, layers, ranks=[2], bias=1.0) as engine, pytest.raises(SonaValueError, match="layer with bias"):
        write_merged(corrections(engine, layers=layers), tmp_path / "base", tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base"]


def test_a_merge_changes_the_named_weights_alone(tmp_path: Path, rng: np.random.Generator):
    from safetensors.numpy import load_file

    weights = {f"bert.encoder.layer.{i}.output.dense.weight": rng.normal(size=(16, 24)).astype(np.float32) for i in range(2)}
    weights |= {f"bert.encoder.layer.{i}.output.dense.bias": rng.normal(size=16).astype(np.float32) for i in range(2)}
    weights["other"] = rng.normal(size=5).astype(np.float16)
    (tmp_path / "base" / "1_Pooling").mkdir(parents=True)
    (tmp_path / "base" / "1_Pooling" / "config.json").write_text("{}")
    (tmp_path / "base" / "onnx").mkdir()
    (tmp_path / "base" / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "base" / "a.safetensors").write_bytes(safetensors_bytes(weights, {}))
    layers = Layers(layers=(layer("encoder.layer.1.output.dense", "linear", 24, 16),))
    with taught(rng, layers, ranks=[3], bias=1.0) as engine:
        where = write_merged(found := corrections(engine, layers=layers), tmp_path / "base", tmp_path / "merged")
        (change,) = found.linear("test")
    key = "bert.encoder.layer.1.output.dense"
    expected = weights | {
        f"{key}.weight": weights[f"{key}.weight"] + change.up @ change.down,
        f"{key}.bias": weights[f"{key}.bias"] + change.bias,
    }
    merged = load_file(where / "a.safetensors")
    assert merged.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(merged[name], array, atol=1e-6 if name.startswith(key) else 0)
    assert sorted(path.name for path in where.iterdir()) == ["1_Pooling", "a.safetensors", "config.json"]


@pytest.mark.slow
def test_sixteen_bits_round_to_the_nearest(rng: np.random.Generator):
    torch = pytest.importorskip("torch")
    numbers = np.concatenate([rng.normal(size=4000).astype(np.float32), (np.arange(512) / 256 + 1).astype(np.float32)])
    for kind, dtype in [("BF16", torch.bfloat16), ("F16", torch.float16)]:
        ours = as_floats(as_bytes(numbers, kind), kind)
        np.testing.assert_array_equal(ours, torch.from_numpy(numbers).to(dtype).float().numpy())
    with pytest.raises(SonaValueError, match="got F8_E4M3"):
        as_floats(b"", "F8_E4M3")


def plain(rng: np.random.Generator, **options: object) -> sona.SonaEngine:
    engine = sona.SonaEngine(sona.SonaConfig(hidden_dim=D), **options)  # type: ignore[arg-type]
    engine.adapters[0].assign(*(rng.normal(size=(3, D)).astype(np.float32) for _ in range(2)), rng.normal(size=3).astype(np.float32))
    return engine


@pytest.mark.parametrize("form", ["w.npy", "w.safetensors", "2_Dense"])
def test_a_dense_matrix_is_what_apply_does(form: str, tmp_path: Path, rng: np.random.Generator):
    x = rng.normal(size=(5, D)).astype(np.float32)
    with plain(rng) as engine:
        expected = engine.apply_batch(x)
        where = write_dense(corrections(engine), tmp_path / form)
    if form == "w.npy":
        y = np.hstack([x, np.ones((5, 1), np.float32)]) @ np.load(where)
    else:
        from safetensors.numpy import load_file

        arrays = load_file(where if where.is_file() else where / "model.safetensors")
        y = x @ arrays["linear.weight"].T + arrays["linear.bias"]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.slow
def test_sentence_transformers_loads_the_dense_module(tmp_path: Path, rng: np.random.Generator):
    modules = pytest.importorskip("sentence_transformers.models")
    torch = pytest.importorskip("torch")
    x = rng.normal(size=(5, D)).astype(np.float32)
    with plain(rng) as engine:
        expected = engine.apply_batch(x)
        where = write_dense(corrections(engine), tmp_path / "2_Dense")
    with torch.no_grad():
        y = modules.Dense.load(str(where))({"sentence_embedding": torch.from_numpy(x)})["sentence_embedding"].numpy()
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-4)


def test_factors_are_what_baselora_reads(tmp_path: Path, rng: np.random.Generator):
    x = rng.normal(size=D).astype(np.float32)
    with plain(rng) as engine:
        expected = engine.apply(x)
        write_factors(corrections(engine), tmp_path / "f.safetensors")
    y = x.copy()
    sona.BaseLoRA.load(tmp_path / "f.safetensors").forward_layer(0, x, y)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


# ---- GGUF ----


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """A slow oracle of the order of q's and k's rows: row h * size + 2 i + s of a head of that size was row h * size + s * size / 2 + i."""
    size = len(weight) // heads
    rows = [h * size + s * (size // 2) + i for h in range(heads) for i in range(size // 2) for s in range(2)]
    return weight[rows]


def test_gguf_reads_the_same_change_of_weights(named, tmp_path: Path):  # type: ignore[no-untyped-def]
    gguf = pytest.importorskip("gguf")
    kind, _, found = named
    if kind == "bert":
        with pytest.raises(SonaValueError, match="without learned constant"):
            write_gguf(found, tmp_path / "lora.gguf")
        return
    if kind == "llama":
        with pytest.raises(SonaValueError, match=r"num_attention_heads \(--model\)"):
            write_gguf(found, tmp_path / "lora.gguf")
        assert not list(tmp_path.iterdir())
    (tmp_path / "base").mkdir()
    about = {"model_type": kind, "num_attention_heads": 4, "num_key_value_heads": 2}
    (tmp_path / "base" / "config.json").write_text(json.dumps(about))
    reader = gguf.GGUFReader(write_gguf(found, tmp_path / "lora.gguf", model=tmp_path / "base"))
    field = {
        name: reader.get_field(name).contents() for name in ("general.type", "general.architecture", "adapter.type", "adapter.lora.alpha")
    }
    assert field == {"general.type": "adapter", "general.architecture": kind, "adapter.type": "lora", "adapter.lora.alpha": 3.0}
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    short = {"q_proj": "attn_q", "k_proj": "attn_k", "down_proj": "ffn_down", "c_attn": "attn_qkv", "c_proj": "ffn_down"}
    assert len(tensors) == 2 * len(found.factors)
    for change in found.linear("test"):
        parts = change.layer.name.split(".")
        base = f"blk.{parts[2]}.{short[parts[-1]]}.weight"
        a, b = tensors[f"{base}.lora_a"], tensors[f"{base}.lora_b"]
        heads = {"q_proj": 4, "k_proj": 2}.get(parts[-1])
        delta = change.up @ change.down
        np.testing.assert_allclose(3.0 / len(a) * b @ a, delta if heads is None else permuted(delta, heads), atol=1e-5)


def test_without_gguf_one_line_says_what_to_install(tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    layers = Layers(layers=(layer("a", "linear", D, D),), model_type="qwen2")
    with (
        taught(rng, layers, ranks=[2]) as engine,
        pytest.raises(MissingExtraError, match=r"^GGUF files need gguf: pip install 'sona\[gguf\]'$"),
    ):
        write_gguf(corrections(engine, layers=layers), tmp_path / "lora.gguf")


def test_gguf_refuses_what_llama_cpp_does_not_have(tmp_path: Path, rng: np.random.Generator):
    pytest.importorskip("gguf")
    for layers, message in [
        (Layers(layers=(layer("encoder.block.0.q", "linear", D, D),), model_type="t5"), "expected a model_type of bert, .* got 't5'"),
        (Layers(layers=(layer("something.else", "linear", D, D),), model_type="qwen2"), "expected a layer that qwen2 of llama.cpp has"),
        (Layers(layers=(layer("pooled", "pooled", D, D),), model_type="bert"), "got 'pooled' of kind 'pooled'"),
    ]:
        with taught(rng, layers, ranks=[2]) as engine, pytest.raises(SonaValueError, match=message):
            write_gguf(corrections(engine, layers=layers), tmp_path / "lora.gguf")
    assert not list(tmp_path.iterdir())


# ---- what is exported ----


@pytest.fixture
def stored(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A store with a router's state and a version of it."""
    path = tmp_path / "sona.db"
    arms = {name: vector for name, vector in zip("abc", np.eye(3, 8, dtype=np.float32), strict=True)}
    with sona.Router(arms, store=path, name="shop") as router:
        for _ in range(40):
            x = rng.normal(size=8).astype(np.float32)
            decision = router.route(x)
            router.feedback(decision.id, float(decision.arm == "b"))
    return path


def test_a_store_is_read_as_the_engine_that_wrote_it(stored: Path, tmp_path: Path):
    kept = corrections(stored, name="shop")
    with sona.SonaEngine(sona.SonaConfig(hidden_dim=8)) as blank:
        kept.factors[0].put(blank.adapters[0])
        with sona.Router({n: v for n, v in zip("abc", np.eye(3, 8, dtype=np.float32), strict=True)}, store=stored, name="shop") as router:
            np.testing.assert_array_equal(router.engine.apply(np.ones(8)), blank.apply(np.ones(8)))
            np.testing.assert_array_equal(kept.factors[0].down, corrections(router).factors[0].down)
    assert np.abs(kept.factors[0].up).max() > 0
    with pytest.raises(SonaStoreError, match=r"there is no state 'default'"):
        corrections(stored)
    with pytest.raises(SonaStoreError, match="expected one of the namespaces default, got 'other'"):
        corrections(stored, namespace="other", name="shop")
    with pytest.raises(SonaStoreError, match="no such store"):
        corrections(tmp_path / "absent.db")
    for write in (write_peft, write_gguf):
        with pytest.raises(SonaValueError, match="got 'shop' without names of layers"):
            write(kept, tmp_path / "out")


def test_a_version_takes_the_first_layers_place(tmp_path: Path, rng: np.random.Generator):
    with plain(rng) as engine:
        before = corrections(engine)
        served = engine.adapters[0].rows()
        engine._service.versions.add(  # type: ignore[attr-defined]
            sona.adapters.Version(name="default", created=0.0, verdict="served", reason="", factors=before.factors[0])
        )
        engine.adapters[0].assign(served[0] * 2, served[1], served[2])
        np.testing.assert_array_equal(corrections(engine, version=1).factors[0].down, served[0])
        np.testing.assert_array_equal(corrections(engine).factors[0].down, served[0] * 2)
        with pytest.raises(SonaValueError, match="version: expected one of"):
            corrections(engine, version=7)


def test_names_of_layers_fit_the_engine():
    factors = sona.adapters.Factors(*np.zeros((2, 1, 8), np.float32), np.zeros(1, np.float32))
    two = Layers(layers=(layer("a", "linear", 8, 8), layer("b", "linear", 8, 8)))
    with pytest.raises(SonaCorruptError, match="expected 1, one per layer"):
        Corrections((factors,), two, "x")
    with pytest.raises(SonaCorruptError, match="expected at most 8 features"):
        Corrections((factors,), Layers(layers=(layer("a", "linear", 8, 9),)), "x").linear("test")
