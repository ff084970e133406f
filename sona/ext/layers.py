"""Which layers of a frozen model the layers of an engine stand beside, kept with the engine's state."""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Literal

from sona.errors import SonaCorruptError, SonaTypeError, SonaValueError, SonaVersionError
from sona.loops.journal import LAYERS
from sona.store import Store

Kind = Literal["linear", "residual", "pooled"]
KINDS = ("linear", "residual", "pooled")
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Layer:
    """
    Attributes
    ----------
    name : str
        Of the module, as `named_modules` has it.
    kind : {"linear", "residual", "pooled"}
        What the correction is added to: the output of a linear layer, given its input; the output of a block; the pooled output.
    in_features, out_features : int
        Width of what is read and of what is added to.

    Raises
    ------
    SonaTypeError, SonaValueError
        Anything else.
    """

    name: str
    kind: Kind
    in_features: int
    out_features: int

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise SonaTypeError(f"name: expected a str, got {type(self.name).__name__}")
        if self.kind not in KINDS:
            raise SonaValueError(f"kind: expected one of {', '.join(KINDS)}, got {self.kind!r}")
        for field in ("in_features", "out_features"):
            if type(value := getattr(self, field)) is not int or value < 1:
                raise SonaValueError(f"{field}: expected a whole number of at least 1, got {value!r}")


@dataclass(frozen=True, slots=True)
class Layers:
    """
    Attributes
    ----------
    layers : tuple of Layer
        One per layer of the engine, names distinct.
    base_model, model_type, fingerprint : str or None
        Name or directory of the frozen model, its architecture as transformers names it, and what identifies its weights.
    """

    layers: tuple[Layer, ...]
    base_model: str | None = None
    model_type: str | None = None
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        names = Counter(layer.name for layer in self.layers)
        if not names or max(names.values()) > 1:
            raise SonaValueError(f"layers: expected at least one, with distinct names, got {[layer.name for layer in self.layers]}")


def put_layers(store: Store, name: str, layers: Layers) -> None:
    """Keep them beside the state of that name; takes the learning lease when it is free. SonaStoreError as `Store.put_state`."""
    store.put_state(name + LAYERS, json.dumps({"format": FORMAT} | asdict(layers)).encode(), 0)


def get_layers(store: Store, name: str) -> Layers | None:
    """
    What `put_layers` kept; None where nothing was.

    Raises
    ------
    SonaCorruptError, SonaVersionError
        It is damaged, or of a newer format.
    """
    kept = store.get_state(name + LAYERS)
    if kept is None:
        return None
    try:
        fields = json.loads(kept[0])
        if fields["format"] > FORMAT:
            raise SonaVersionError(f"layers: expected format {FORMAT} or older, got {fields['format']}")
        del fields["format"]
        return Layers(**fields | {"layers": tuple(Layer(**layer) for layer in fields["layers"])})
    except (ValueError, KeyError, TypeError) as error:
        raise SonaCorruptError(f"layers: expected what put_layers wrote, got: {error}") from error
