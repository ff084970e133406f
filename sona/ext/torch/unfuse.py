"""torch's own encoder calls fused code that goes past its modules; where one of them has an adapter, the modules have to be called."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn


def unfuse(model: nn.Module, names: Iterable[str]) -> list[Callable[[], None]]:
    """
    Make every `nn.TransformerEncoder` and `nn.TransformerEncoderLayer` with one of the named modules call its modules.

    Returns
    -------
    list of callable
        What takes that back.
    """
    names, undo = set(names), list[Callable[[], None]]()
    for name, module in model.named_modules():
        inside = name + "." if name else ""
        if not any(each == name or each.startswith(inside) for each in names):
            continue
        if isinstance(module, nn.TransformerEncoderLayer):  # has no switch of its own; it looks for hooks
            undo.append(module.register_forward_pre_hook(_nothing).remove)
        elif isinstance(module, nn.TransformerEncoder) and getattr(module, "use_nested_tensor", False):  # its blocks would get no rows
            module.use_nested_tensor = False
            undo.append(_nested_again(module))
    return undo


def _nothing(module: nn.Module, inputs: Any) -> None:
    """A hook that changes nothing."""


def _nested_again(encoder: nn.TransformerEncoder) -> Callable[[], None]:
    def again() -> None:
        encoder.use_nested_tensor = True

    return again
