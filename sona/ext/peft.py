"""PEFT's LoRA directories: adapter_config.json and adapter_model.safetensors, written and read without peft."""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from sona._arrays import Floats
from sona._files import replace_file
from sona.config import SonaConfig
from sona.engine import SonaEngine, Store
from sona.errors import SonaCorruptError, SonaStoreError, SonaValueError
from sona.ext.files import read_safetensors, safetensors_bytes
from sona.ext.layers import Layer, Layers, put_layers
from sona.ext.stored import Corrections

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TRANSPOSED = frozenset(("gpt2",))  # model types whose linear layers are Conv1D: weights (in, out)
_PREFIX = "base_model.model."
_PART = re.compile(re.escape(_PREFIX) + r"(.+)\.lora_([AB])\.(?:default\.)?weight")
# Of adapter_config.json: what must be absent, false or empty, for it is another computation than W + scale B A.
_REFUSED = {
    "use_dora": "DoRA",
    "modules_to_save": "modules_to_save",
    "trainable_token_indices": "trainable_token_indices",
    "lora_bias": "lora_bias",
    "layer_replication": "layer_replication",
    "alora_invocation_tokens": "aLoRA",
    "use_qalora": "QALoRA",
    "target_parameters": "target_parameters",
}


def write_peft(found: Corrections, directory: str | os.PathLike[str], *, base_model: str | None = None) -> Path:
    """
    Write a directory that `peft.PeftModel.from_pretrained(model, directory)` loads; the outputs are those of the attached model.

    Layers of less rank than the highest are filled up with zeros, and lora_alpha = r makes the scale 1: one rank for all is what servers
    read. A learned constant becomes PEFT's `lora_bias`.

    Parameters
    ----------
    found : Corrections
    directory : path
        Made when absent.
    base_model : str, optional
        For `base_model_name_or_path`; default what the layers were kept with.

    Raises
    ------
    SonaValueError
        Layers without names, or that are not linear.
    SonaStoreError
        The files cannot be written.
    """
    changes = found.linear("--peft")
    assert found.layers is not None
    rank = max(len(change.down) for change in changes)
    biased = any(change.bias.any() for change in changes)
    arrays: dict[str, Floats] = {}
    for change in changes:
        short = rank - len(change.down)
        key = f"{_PREFIX}{change.layer.name}"
        arrays[f"{key}.lora_A.weight"] = np.pad(change.down, ((0, short), (0, 0)))
        arrays[f"{key}.lora_B.weight"] = np.pad(change.up, ((0, 0), (0, short)))
        if biased:
            arrays[f"{key}.lora_B.bias"] = change.bias
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base_model or found.layers.base_model or None,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "lora_bias": biased,
        "fan_in_fan_out": found.layers.model_type in TRANSPOSED,
        "inference_mode": True,
        "target_modules": [change.layer.name for change in changes],
    }
    where = Path(directory)
    try:
        where.mkdir(parents=True, exist_ok=True)
        replace_file(where / WEIGHTS, safetensors_bytes(arrays, {"format": "pt", "sona": found.origin}))
        replace_file(where / CONFIG, (json.dumps(config, indent=2) + "\n").encode())
    except OSError as error:
        raise SonaStoreError(f"{where}: {error.strerror or error}") from error
    return where


def engine_from_peft(
    directory: str | os.PathLike[str], *, store: Store = None, name: str = "default", **config: Any
) -> tuple[SonaEngine, Layers]:
    """
    An engine whose base tier is a LoRA of PEFT, one layer per linear layer in it, to learn on from there.

    Parameters
    ----------
    directory : path
        With adapter_config.json and adapter_model.safetensors.
    store, name
        Of the engine; a store also keeps the layers, so that `sona export` knows them.
    config
        Fields of `SonaConfig`, except `hidden_dim` and `num_layers`. `base_lora_rank` is by default that of the LoRA, and `bias_input` 0,
        so that what is learned stays a LoRA.

    Returns
    -------
    SonaEngine
        As wide as the widest layer: what is shorter is filled up with zeros.
    Layers
        In the order of the engine's layers.

    Raises
    ------
    SonaValueError
        DoRA, a bias, or another thing that is not W + scale B A; a store that keeps a state of that name.
    SonaCorruptError
        Files that do not fit each other.
    SonaStoreError
        They cannot be read.
    """
    where = Path(directory)
    about = _config(where)
    parts = _pairs(where, read_safetensors(where / WEIGHTS))
    layers, rows = [], []
    for module in sorted(parts, key=_natural):
        down, up = (parts[module][part].astype(np.float32) for part in "AB")
        layers.append(Layer(name=module, kind="linear", in_features=down.shape[1], out_features=up.shape[0]))
        rows.append((down, up.T * np.float32(_scale(about, module, len(down)))))
    found = Layers(layers=tuple(layers), base_model=about.get("base_model_name_or_path") or "")
    width = found.width
    rank = max(len(down) for down, _ in rows)
    config = {"base_lora_rank": rank, "base_lora_rank_max": max(64, rank), "bias_input": 0.0} | config
    engine = SonaEngine(SonaConfig(**config, hidden_dim=width, num_layers=len(layers)), store=store, name=name)
    try:
        if engine.store is not None and engine.store.get_state(name) is not None:
            raise SonaValueError(f"name: expected one without a state in {engine.store.path}, got {name!r}")
        for adapter, (down, up) in zip(engine.adapters, rows, strict=True):
            adapter.assign(_wide(down, width), _wide(up, width))
        if engine.journal is not None and engine.store is not None:
            engine.journal.save()
            put_layers(engine.store, name, found)
    except BaseException:
        engine.close()
        raise
    return engine, found


def _wide(rows: Floats, width: int) -> Floats:
    return np.ascontiguousarray(np.pad(rows, ((0, 0), (0, width - rows.shape[1]))))


def _natural(name: str) -> list[tuple[int, str]]:
    """layer.2 before layer.10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def _config(where: Path) -> dict[str, Any]:
    try:
        about = json.loads((where / CONFIG).read_text(encoding="utf-8"))
        kind, bias = about.get("peft_type"), about.get("bias", "none")
    except OSError as error:
        raise SonaStoreError(f"{where / CONFIG}: {error.strerror or error}") from error
    except (ValueError, AttributeError) as error:
        raise SonaCorruptError(f"{where / CONFIG}: expected a JSON object, got: {error}") from error
    if kind != "LORA":
        raise SonaValueError(f"{where}: expected an adapter of peft_type LORA, got {kind!r}")
    if bias != "none":
        raise SonaValueError(f"{where}: expected bias='none', got {bias!r}: biases of the model were trained beside the LoRA")
    for key, meaning in _REFUSED.items():
        if about.get(key):
            raise SonaValueError(f"{where}: expected a LoRA without {meaning}, got {key}={about[key]!r}")
    return about  # type: ignore[no-any-return]


def _pairs(where: Path, arrays: dict[str, Floats]) -> dict[str, dict[str, Floats]]:
    """module -> {"A": (rank, in), "B": (out, rank)}."""
    parts: dict[str, dict[str, Floats]] = {}
    for key, array in arrays.items():
        match = _PART.fullmatch(key)
        if match is None:
            raise SonaValueError(f"{where}: expected tensors lora_A.weight and lora_B.weight of linear layers only, got {key!r}")
        parts.setdefault(match[1], {})[match[2]] = array
    if not parts:
        raise SonaCorruptError(f"{where}: expected at least one pair of tensors, got none")
    for module, pair in parts.items():
        shapes = {part: pair[part].shape for part in sorted(pair)}
        if set(shapes) != {"A", "B"} or any(len(shape) != 2 for shape in shapes.values()) or shapes["A"][0] != shapes["B"][1]:
            raise SonaCorruptError(f"{where}: expected lora_A (rank, in) and lora_B (out, rank) of {module!r}, got {shapes}")
        if not all(np.isfinite(array).all() for array in pair.values()):
            raise SonaValueError(f"{where}: expected finite numbers, got others in {module!r}")
    return parts


def _scale(about: dict[str, Any], module: str, rank: int) -> float:
    """alpha / rank, or alpha / sqrt(rank) of rsLoRA, with the module's own alpha where there is one."""
    alpha = about.get("lora_alpha", 8)
    try:
        for pattern, own in (about.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                alpha = own
                break
        return float(alpha) / (rank**0.5 if about.get("use_rslora") else rank)
    except (ValueError, TypeError, AttributeError, re.error) as error:
        raise SonaCorruptError(f"{CONFIG}: expected lora_alpha and alpha_pattern with numbers, got: {error}") from error
