"""Corrections merged into weights: a dense matrix behind a model, or the linear layers of a checkpoint."""

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sona._arrays import Floats
from sona._files import replace_file
from sona.errors import SonaCorruptError, SonaStoreError, SonaValueError
from sona.ext.files import read_header, replacing, rewrite_safetensors, safetensors_bytes
from sona.ext.peft import TRANSPOSED
from sona.ext.stored import Corrections, LowRank

_WEIGHTS = (".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf", ".ckpt")  # of another format, which would not be merged

_CONVERTED = ("onnx", "openvino")  # directories with the whole model in another format


def write_factors(found: Corrections, file: str | os.PathLike[str]) -> Path:
    """
    The factors of every layer as `sona.BaseLoRA.load` reads them: ``i.down``, ``i.up`` (rank, dim) and ``i.offset`` (rank,).

    The metadata has the origin and, where they are known, the layers as JSON. SonaStoreError when it cannot be written.
    """
    arrays: dict[str, Floats] = {}
    for index, factors in enumerate(found.factors):
        arrays |= {f"{index}.down": factors.down, f"{index}.up": factors.up, f"{index}.offset": factors.offset}
    about = {"hidden_dim": str(found.factors[0].down.shape[1]), "sona": found.origin}
    if found.layers is not None:
        about["layers"] = found.layers.to_json()
    return _write(Path(file), safetensors_bytes(arrays, about))


def write_dense(found: Corrections, path: str | os.PathLike[str]) -> Path:
    """
    The correction of a model's output as one matrix, y = x W + b with W = I + delta, in the form that the path's name asks for.

    Parameters
    ----------
    found : Corrections
    path : path
        ``.npy``: one array (d + 1, d), W above b. ``.safetensors``: ``linear.weight`` = W^T (d, d), as torch has it, and ``linear.bias``
        (d,). Another name: a directory in the layout of sentence-transformers' module ``Dense``, without activation.

    Raises
    ------
    SonaValueError
        There is more than one layer, or it is one inside a model.
    SonaStoreError
        It cannot be written.
    """
    weight, bias = found.dense("--merged")
    where = Path(path)
    if where.suffix == ".npy":
        content = io.BytesIO()
        np.save(content, np.vstack([weight, bias]), allow_pickle=False)
        return _write(where, content.getvalue())
    tensors = safetensors_bytes({"linear.weight": weight.T, "linear.bias": bias}, {"format": "pt", "sona": found.origin})
    if where.suffix == ".safetensors":
        return _write(where, tensors)
    width = len(weight)
    about = {"in_features": width, "out_features": width, "bias": True, "activation_function": "torch.nn.modules.linear.Identity"}
    try:
        where.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SonaStoreError(f"{where}: {error.strerror or error}") from error
    _write(where / "model.safetensors", tensors)
    _write(where / "config.json", (json.dumps(about, indent=2) + "\n").encode())
    return where


def write_merged(found: Corrections, model: str | os.PathLike[str], directory: str | os.PathLike[str]) -> Path:
    """
    A copy of a model's directory whose linear layers have the correction in their weights.

    The weights keep their float type: in 16 bits the sum is rounded, and of a small correction little may be left. What is not changed is
    copied byte for byte. One tensor is in memory at a time.

    Parameters
    ----------
    found : Corrections
    model : path
        A directory with config.json and safetensors files, as `save_pretrained` writes it.
    directory : path
        Made; must not exist, and appears as a whole.

    Raises
    ------
    SonaValueError
        Layers that are not linear or not in the model, of another shape, or a learned constant for a layer without bias.
    SonaStoreError, SonaCorruptError
        The model cannot be read or the copy not written.
    """
    source, target = Path(model), Path(directory)
    changes = found.linear("--merged")
    if target.exists():
        raise SonaStoreError(f"{target}: expected a directory that does not exist yet")
    try:
        transposed = _model_type(source) in TRANSPOSED
        files = sorted(source.glob("*.safetensors"))
        if not files:
            raise SonaValueError(f"{source}: expected a model with safetensors files, got none")
        shapes = {file: _shapes(file) for file in files}
    except OSError as error:
        raise SonaStoreError(f"{error.filename or source}: {error.strerror or error}") from error
    wanted = _replacements(changes, {name: shape for part in shapes.values() for name, shape in part.items()}, transposed)
    with replacing(target) as temporary:
        temporary.mkdir(parents=True)
        for file in sorted(source.iterdir()):
            if file in shapes:
                rewrite_safetensors(file, temporary / file.name, {n: change for n, change in wanted.items() if n in shapes[file]})
            elif file.is_file() and file.suffix not in _WEIGHTS:
                shutil.copyfile(file, temporary / file.name)
            elif file.is_dir() and file.name not in _CONVERTED:
                shutil.copytree(file, temporary / file.name)  # other modules of sentence-transformers
    return target


def _replacements(changes: list[LowRank], shapes: dict[str, tuple[int, ...]], transposed: bool) -> dict[str, Callable[[Floats], Floats]]:
    """Name of a tensor in the checkpoint -> its new content from its old."""
    result: dict[str, Callable[[Floats], Floats]] = {}
    for change in changes:
        module = change.layer.name
        name = tensor_of(f"{module}.weight", shapes)
        expected = (change.layer.out_features, change.layer.in_features)
        expected = expected[::-1] if transposed else expected
        if shapes[name] != expected:
            raise SonaValueError(f"{name}: expected shape {expected} in the model, got {shapes[name]}")
        result[name] = _plus(change, transposed)
        if change.bias.any():
            bias = name.removesuffix("weight") + "bias"
            if bias not in shapes:
                raise SonaValueError(f"{module}: expected a layer with bias for a learned constant, got none (bias_input=0)")
            result[bias] = _plus_bias(change)
    return result


def _plus(change: LowRank, transposed: bool) -> Callable[[Floats], Floats]:
    def merged(weight: Floats) -> Floats:
        delta = change.up.astype(np.float64) @ change.down
        total: Floats = (weight + (delta.T if transposed else delta)).astype(np.float32)
        return total

    return merged


def _plus_bias(change: LowRank) -> Callable[[Floats], Floats]:
    def merged(bias: Floats) -> Floats:
        total: Floats = bias + change.bias
        return total

    return merged


def tensor_of(name: str, shapes: dict[str, tuple[int, ...]]) -> str:
    """The tensor of that name; a checkpoint may have a prefix more or less, such as ``bert.`` or ``model.``, where only one tensor fits."""
    if name in shapes:
        return name
    short = name.partition(".")[2]
    fitting = [key for key in shapes if key.endswith(f".{name}")] or [key for key in shapes if key == short]
    if len(fitting) != 1:
        raise SonaValueError(f"{name}: expected a tensor of that name in the model, got {len(fitting)} that end so")
    return fitting[0]


def _model_type(source: Path) -> str | None:
    try:
        return json.loads((source / "config.json").read_text(encoding="utf-8")).get("model_type")  # type: ignore[no-any-return]
    except (ValueError, AttributeError) as error:
        raise SonaCorruptError(f"{source / 'config.json'}: expected a JSON object, got: {error}") from error


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    with open(file, "rb") as opened:
        return {name: tuple(about["shape"]) for name, about in read_header(opened, file)[1].items()}


def _write(where: Path, content: bytes) -> Path:
    try:
        replace_file(where, content)
    except OSError as error:
        raise SonaStoreError(f"{where}: {error.strerror or error}") from error
    return where
