"""Tiny random models, and adapters in them that change what they say. Importing this needs torch and transformers."""

from typing import Any

import numpy as np
import torch
import transformers

from sona.ext.torch import Attached

torch.set_num_threads(1)  # of models this small more threads only wait for each other

IDS = torch.arange(24).reshape(3, 8) % 30
SIZES = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
GROUPED = SIZES | {"num_key_value_heads": 1, "pad_token_id": 0}


def bert(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return transformers.BertModel(transformers.BertConfig(**SIZES, max_position_embeddings=16)).eval()


def gpt2() -> Any:
    torch.manual_seed(0)
    return transformers.GPT2Model(transformers.GPT2Config(vocab_size=30, n_embd=16, n_layer=2, n_head=2, n_positions=16)).eval()


def llama() -> Any:
    torch.manual_seed(0)
    return transformers.LlamaModel(transformers.LlamaConfig(**GROUPED)).eval()


def qwen() -> Any:
    torch.manual_seed(0)
    return transformers.Qwen3Model(transformers.Qwen3Config(**GROUPED, head_dim=8, max_window_layers=2)).eval()


def gemma() -> Any:
    torch.manual_seed(0)
    config = transformers.Gemma2Config(**GROUPED, head_dim=8, sliding_window=4, query_pre_attn_scalar=8, attn_implementation="eager")
    return transformers.Gemma2Model(config).eval()


def teach(attached: Attached, seed: int = 0, size: float = 0.3) -> None:
    """One pair a layer, in the part that belongs to it."""
    rng = np.random.default_rng(seed)
    for adapter, layer in zip(attached.engine.adapters, attached.layers, strict=True):
        up, down = np.zeros(adapter.dim), np.zeros(adapter.dim)
        up[: layer.out_features] = size * rng.standard_normal(layer.out_features)
        down[: layer.in_features] = rng.standard_normal(layer.in_features)
        adapter.append(up, down)


def merge(model: Any, attached: Attached) -> Any:
    """The corrections of linear layers as weights of `model`, a bare copy."""
    for number, layer in enumerate(attached.layers):
        delta = torch.from_numpy(attached.engine.adapters[number].delta())
        model.get_submodule(layer.name).weight.data += delta[: layer.in_features, : layer.out_features].T
    return model


def out(model: Any, **inputs: Any) -> Any:
    with torch.no_grad():
        return model(**({"input_ids": IDS} | inputs)).last_hidden_state
