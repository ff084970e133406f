"""Where in a model adapters go: names, kinds and sizes of the modules that a caller asks for."""

import hashlib
from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from sona.errors import SonaTypeError, SonaValueError
from sona.ext.layers import Layer, Layers


def sizes_of(module: nn.Module) -> tuple[int, int] | None:
    """(in, out) of a linear module, also of the transposed one of GPT-2; None for any other."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if type(module).__name__ == "Conv1D" and isinstance(weight := getattr(module, "weight", None), torch.Tensor) and weight.ndim == 2:
        return int(weight.shape[0]), int(weight.shape[1])
    return None


def hidden_size(model: nn.Module, module: nn.Module | None = None) -> int:
    """Length of a token's vector: as the model's configuration says, else of the last normalisation or linear layer in the module."""
    config = getattr(model, "config", None)
    size = getattr(getattr(config, "text_config", config), "hidden_size", None)
    if type(size) is int:
        return size
    for each in reversed(list((module or model).modules())):
        if isinstance(each, nn.LayerNorm):
            return int(each.normalized_shape[-1])
        if (sizes := sizes_of(each)) is not None:
            return sizes[1]
    raise SonaValueError("layers: expected a model with a config.hidden_size, or with a linear or LayerNorm module, got neither")


def blocks(model: nn.Module) -> list[str]:
    """Names of the transformer blocks: the longest list of modules of one class, the outermost of several."""
    found: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) > len(found) and len({type(each) for each in module}) == 1:
            found = [f"{name}.{n}" if name else str(n) for n in range(len(module))]
    if not found:
        raise SonaValueError("layers: expected a model with a list of blocks for 'residual', got none; name the modules instead")
    return found


def fingerprint(model: nn.Module) -> str:
    """Of names, shapes and the first numbers of every parameter; a model trained on has another one."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().reshape(-1)[:64].to("cpu", torch.float64).numpy().tobytes())
    return digest.hexdigest()[:16]


def find(model: nn.Module, layers: str | Sequence[str]) -> Layers:
    """
    The layers that were asked for, in the model's order.

    Raises
    ------
    SonaValueError
        A name that fits no module, or a pattern that fits no linear one.
    """
    config = getattr(model, "config", None)
    if layers == "pooled":
        size = hidden_size(model)
        chosen = [Layer(name="pooled", kind="pooled", in_features=size, out_features=size)]
    else:
        if isinstance(layers, str) and layers != "residual":
            raise SonaValueError(f"layers: expected 'pooled', 'residual' or a list of names, got {layers!r}")
        if not isinstance(layers, str) and not all(isinstance(each, str) for each in layers):
            raise SonaTypeError(f"layers: expected names as str, got {layers!r}")
        patterns = blocks(model) if isinstance(layers, str) else list(layers)
        chosen, used = [], set[str]()
        for name, module in model.named_modules():
            sizes = sizes_of(module)
            fits = {each for each in patterns if name and (each == name or (sizes is not None and fnmatchcase(name, each)))}
            used |= fits
            if fits and sizes is not None:
                chosen.append(Layer(name=name, kind="linear", in_features=sizes[0], out_features=sizes[1]))
            elif fits:
                size = hidden_size(model, module)
                chosen.append(Layer(name=name, kind="residual", in_features=size, out_features=size))
        attentions = {name for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)}
        if passed := [each.name for each in chosen if each.name.rpartition(".")[0] in attentions]:
            raise SonaValueError(
                f"layers: expected modules that are called, got {passed[0]!r}, of which nn.MultiheadAttention uses the weights alone"
            )
        if missing := [each for each in patterns if each not in used]:
            raise SonaValueError(f"layers: expected the name of a module, or a pattern of linear ones, got {missing[0]!r}, which fits none")
    return Layers(
        layers=tuple(chosen),
        base_model=str(getattr(config, "_name_or_path", "") or ""),
        model_type=str(getattr(config, "model_type", "") or ""),
        fingerprint=fingerprint(model),
    )
