"""GGUF: a LoRA for llama.cpp."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from sona._arrays import Floats
from sona.errors import MissingExtraError, SonaCorruptError, SonaStoreError, SonaValueError
from sona.ext.files import replacing
from sona.ext.stored import Corrections

# model_type of transformers -> architecture of GGUF, where a linear layer's weights are the same numbers in both but for the order of rows
# of q and k under "llama".
ARCHITECTURES = {
    "bert": "bert",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3",
    "gemma3_text": "gemma3",
    "gpt2": "gpt2",
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
}


def write_gguf(found: Corrections, file: str | os.PathLike[str], *, model: str | os.PathLike[str] | None = None) -> Path:
    """
    Write an adapter that llama.cpp applies with ``--lora FILE``; each layer keeps its rank.

    Parameters
    ----------
    found : Corrections
    file : path
    model : path, optional
        Directory of the frozen model, for its config.json; default the `base_model` that the layers were kept with. Needed where the
        layers do not say the model's type, and for llama and mistral, whose rows of q and k have another order in GGUF.

    Raises
    ------
    MissingExtraError
        gguf is not installed.
    SonaValueError
        Layers without names, not linear, or not known to llama.cpp; a model type that is not in `ARCHITECTURES`; a learned constant.
    SonaStoreError
        The file cannot be written, or the model's config.json not be read.
    """
    try:
        import gguf
    except ImportError:
        raise MissingExtraError("GGUF files need gguf: pip install 'sona[gguf]'") from None
    changes = found.linear("--gguf")
    assert found.layers is not None
    biased = next((change.layer.name for change in changes if change.bias.any()), None)
    if biased is not None:
        raise SonaValueError(f"--gguf: expected a correction without learned constant, got one at {biased!r} (bias_input=0 learns none)")
    about = _config(found, model)
    kind = about.get("model_type") or found.layers.model_type
    if kind not in ARCHITECTURES:
        raise SonaValueError(f"--gguf: expected a model_type of {', '.join(ARCHITECTURES)}, got {kind!r}")
    name = ARCHITECTURES[kind]
    (number,) = (number for number, known in gguf.MODEL_ARCH_NAMES.items() if known == name)
    blocks = 1 + max([0, *(int(part) for change in changes for part in change.layer.name.split(".") if part.isdigit())])
    names = gguf.get_tensor_name_map(number, blocks)
    rank = max(len(change.down) for change in changes)
    tensors: dict[str, Floats] = {}
    for change in changes:
        module = change.layer.name.removeprefix("language_model.")
        base = next(filter(None, (names.get_name(prefix + module) for prefix in ("", "model.", "transformer.", "bert."))), None)
        if base is None:
            raise SonaValueError(f"--gguf: expected a layer that {name} of llama.cpp has, got {change.layer.name!r}")
        up = change.up
        if name == "llama":
            up = _reordered(up, base, about)
        tensors[f"{base}.weight.lora_a"] = change.down
        tensors[f"{base}.weight.lora_b"] = up * np.float32(len(change.down) / rank)  # llama.cpp multiplies by alpha / rank
    where = Path(file)
    with replacing(where) as temporary:
        writer = gguf.GGUFWriter(temporary, name)
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(rank))
        writer.add_name(found.origin)
        for key, array in tensors.items():
            writer.add_tensor(key, np.ascontiguousarray(array, np.float32))
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
    return where


def _config(found: Corrections, model: str | os.PathLike[str] | None) -> dict[str, Any]:
    """The model's config.json; empty where no directory is known."""
    assert found.layers is not None
    place = model if model is not None else found.layers.base_model
    if not place or (model is None and not Path(place).is_dir()):
        return {}
    file = Path(place) / "config.json"
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        return {**about.get("text_config", {}), **about}
    except OSError as error:
        raise SonaStoreError(f"{file}: {error.strerror or error}") from error
    except (ValueError, AttributeError, TypeError) as error:
        raise SonaCorruptError(f"{file}: expected a JSON object, got: {error}") from error


def _reordered(up: Floats, tensor: str, about: dict[str, Any]) -> Floats:
    """
    Rows (out_features, rank) of q and k in llama.cpp's order: it turns neighbours of a head, transformers the first with the second half.
    """
    key = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}.get(tensor.rpartition(".")[2])
    if key is None:
        return up
    heads = about.get(key) or about.get("num_attention_heads")
    if not heads or len(up) % (2 * heads):
        raise SonaValueError(f"--gguf: expected the model's config.json with {key} (--model) for {tensor}, got {heads!r}")
    rows: Floats = up.reshape(heads, 2, len(up) // heads // 2, up.shape[1]).swapaxes(1, 2).reshape(up.shape)
    return rows
