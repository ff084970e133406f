"""Which module of which model each layer of an engine belongs to, kept beside the engine's state."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self

from sona.engine import SonaEngine
from sona.errors import SonaTypeError, SonaValueError, SonaVersionError
from sona.store import Store, load_snapshot, save_snapshot

FORMAT = 1

Kind = Literal["linear", "residual", "pooled"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """
    One place in a model that has an adapter.

    Attributes
    ----------
    name : str
        Of the module, as in `model.named_modules()`; for "pooled" any.
    kind : {"linear", "residual", "pooled"}
        "linear": out += delta(in) of that linear module. "residual", "pooled": out += delta(out).
    in_features, out_features : int
        Lengths of what the adapter reads and adds. An engine is as wide as the widest; factors beyond a layer's own are zero.
    """

    name: str
    kind: Kind
    in_features: int
    out_features: int

    def __post_init__(self) -> None:
        if type(self.name) is not str:
            raise SonaTypeError(f"layer name: expected a str, got {self.name!r}")
        if not self.name:
            raise SonaValueError("layer name: expected a name, got ''")
        if self.kind not in ("linear", "residual", "pooled"):
            raise SonaValueError(f"layer {self.name!r}: expected the kind 'linear', 'residual' or 'pooled', got {self.kind!r}")
        for field in ("in_features", "out_features"):
            if type(value := getattr(self, field)) is not int or value < 1:
                raise SonaValueError(f"layer {self.name!r}: expected {field} of at least 1, got {value!r}")
        if self.kind != "linear" and self.in_features != self.out_features:
            raise SonaValueError(
                f"layer {self.name!r}: expected as many numbers out as in for {self.kind!r}, got {self.in_features} and {self.out_features}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Layers:
    """
    The layers of an engine, number 0 first, and the model that they are of.

    Attributes
    ----------
    layers : tuple of Layer
    base_model : str
        Name or path of the frozen model, "" when unknown.
    model_type : str
        Architecture, as in a transformers config ("bert", "llama"), "" when unknown.
    fingerprint : str or None
        What the engine's `model_fingerprint` is.
    """

    layers: tuple[Layer, ...]
    base_model: str = ""
    model_type: str = ""
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.layers, tuple) or not all(isinstance(layer, Layer) for layer in self.layers):
            raise SonaTypeError(f"layers: expected a tuple of Layer, got {self.layers!r}")
        if not self.layers:
            raise SonaValueError("layers: expected at least one, got none")
        names = [layer.name for layer in self.layers]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise SonaValueError(f"layers: expected each name once, got {twice!r} again")
        for field in ("base_model", "model_type"):
            if type(value := getattr(self, field)) is not str:
                raise SonaTypeError(f"{field}: expected a str, got {value!r}")
        if not (self.fingerprint is None or type(self.fingerprint) is str):
            raise SonaTypeError(f"fingerprint: expected a str or None, got {self.fingerprint!r}")

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, number: int) -> Layer:
        return self.layers[number]

    @property
    def width(self) -> int:
        """hidden_dim of an engine that holds them all."""
        return max(max(layer.in_features, layer.out_features) for layer in self.layers)

    def to_json(self) -> str:
        """As a JSON object that `from_json` reads; the same layers give the same text."""
        return json.dumps({"format": FORMAT} | asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """
        What `to_json` wrote.

        Raises
        ------
        SonaVersionError
            Of a newer format, or not layers at all.
        """
        try:
            content = json.loads(text)
            number = content.pop("format")
            if number != FORMAT:
                raise SonaVersionError(f"layers: expected format {FORMAT}, got {number!r}")
            layers = tuple(Layer(**each) for each in content.pop("layers"))
            return cls(layers=layers, **{field.name: content.pop(field.name) for field in fields(cls) if field.name != "layers"})
        except SonaVersionError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise SonaVersionError(f"layers: expected what put_layers keeps, got {error!r}") from error


def _state_name(name: str) -> str:
    return f"{name}.layers"


def put_layers(store: Store, name: str, layers: Layers) -> None:
    """
    Keep the layers of the engine of that name; durable on return. Nothing is written when the store has the same already.

    Raises
    ------
    SonaStoreError
        Another process learns for this store, or it cannot be written; the old ones stay.
    """
    blob, kept = layers.to_json().encode(), store.get_state(_state_name(name))
    if kept is None or kept[0] != blob:
        store.put_state(_state_name(name), blob, 0)


def get_layers(store: Store, name: str) -> Layers | None:
    """
    The layers of the engine of that name; None where its layers have no names (a router, an engine used without a model).

    Raises
    ------
    SonaCorruptError, SonaVersionError
        Damaged, or of a newer format.
    """
    kept = store.get_state(_state_name(name))
    return None if kept is None else Layers.from_json(kept[0])


def save_named(engine: SonaEngine, layers: Layers, path: str | os.PathLike[str]) -> None:
    """`engine.save(path)`, with the layers in the snapshot; `SonaEngine.load` reads it as any other."""
    meta: dict[str, Any] = {"config": engine.config.as_dict(), "name": engine.name, "layers": layers.to_json()}
    save_snapshot(path, engine.state(), meta, fingerprint=engine.fingerprint)


def load_layers(path: str | os.PathLike[str]) -> Layers | None:
    """
    The layers in a snapshot directory; None where it has none.

    Raises
    ------
    SonaCorruptError, SonaVersionError
        Damaged, or of a newer format.
    """
    text = load_snapshot(path)[1].get("layers")
    return None if text is None else Layers.from_json(text)
