"""The corrections that an engine serves, or that a store keeps, as plain arrays: what every export starts from."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from sona._arrays import Floats
from sona.adapters import Factors, Version
from sona.adapters.versions import find
from sona.engine import SonaEngine
from sona.errors import SonaCorruptError, SonaStoreError, SonaValueError
from sona.ext.layers import Layer, Layers, get_layers
from sona.loops.journal import decode_state
from sona.loops.learner import layers_of
from sona.loops.versions import StoredVersions
from sona.router import Router
from sona.store import Store, open_store
from sona.store.open import namespaces_of, shown

Source = SonaEngine | Router | str | os.PathLike[str]


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """
    What is added to one linear layer: W x + b becomes (W + up down) x + b + bias.

    Attributes
    ----------
    layer : Layer
    down : (rank, in_features) float32
        LoRA's A.
    up : (out_features, rank) float32
        LoRA's B, with the scale in it.
    bias : (out_features,) float32
    """

    layer: Layer
    down: Floats
    up: Floats
    bias: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Corrections:
    """
    Attributes
    ----------
    factors : tuple of Factors
        One per layer of the engine, with the rows of both tiers; y = x + up^T (down x + offset).
    layers : Layers or None
        Which layers of a model they stand beside; None where the engine stands beside no named ones.
    origin : str
        Name of the engine, or id of the version.

    Raises
    ------
    SonaCorruptError
        Not a name for each layer.
    """

    factors: tuple[Factors, ...]
    layers: Layers | None
    origin: str

    def __post_init__(self) -> None:
        if self.layers is not None and len(self.layers.layers) != len(self.factors):
            raise SonaCorruptError(f"layers: expected {len(self.factors)}, one per layer of the engine, got {len(self.layers.layers)}")

    def linear(self, what: str) -> list[LowRank]:
        """
        The change of each named linear layer, without rows that add nothing; at least one row each.

        Raises
        ------
        SonaValueError
            Saying that `what` cannot be made: there are no names, or a layer is not linear.
        """
        if self.layers is None:
            raise SonaValueError(
                f"{what}: expected an engine attached to named linear layers of a model, got {self.origin!r} without names of layers; "
                "its correction can be had as a matrix (--merged) or as factors (--safetensors)"
            )
        other = next((layer for layer in self.layers.layers if layer.kind != "linear"), None)
        if other is not None:
            raise SonaValueError(
                f"{what}: expected linear layers only, got {other.name!r} of kind {other.kind!r}: what is added to the output of a "
                f"{'pooling' if other.kind == 'pooled' else 'block'} is no change of a linear layer's weights"
            )
        return [_cut(factors, layer) for factors, layer in zip(self.factors, self.layers.layers, strict=True)]

    def dense(self, what: str) -> tuple[Floats, Floats]:
        """
        W (d, d) and b (d,) with y = x W + b, of the one layer there is, in float32 from sums in float64.

        SonaValueError where there are more, or it is the layer of a model that reads something else than what it adds to.
        """
        kinds = [] if self.layers is None else [layer.kind for layer in self.layers.layers]
        if len(self.factors) != 1 or "linear" in kinds:
            got = f"{len(self.factors)} layers" if len(self.factors) != 1 else "a linear layer inside a model (give --model)"
            raise SonaValueError(f"{what}: expected one correction of a model's output, got {got}")
        (factors,) = self.factors
        width = factors.down.shape[1] if self.layers is None else self.layers.layers[0].in_features
        down, up = factors.down[:, :width].astype(np.float64), factors.up[:, :width].astype(np.float64)
        return (np.eye(width) + down.T @ up).astype(np.float32), (factors.offset @ up).astype(np.float32)


def _cut(factors: Factors, layer: Layer) -> LowRank:
    """To the widths of the layer: the engine is as wide as the widest one."""
    if max(layer.in_features, layer.out_features) > (width := factors.down.shape[1]):
        raise SonaCorruptError(
            f"layers: expected at most {width} features, got {layer.in_features} and {layer.out_features} of {layer.name!r}"
        )
    down, up = factors.down[:, : layer.in_features], factors.up[:, : layer.out_features]
    bias = factors.offset.astype(np.float64) @ up
    kept = np.flatnonzero(np.any(down, axis=1) & np.any(up, axis=1))
    if not len(kept):
        kept = np.array([0])
    return LowRank(layer, np.ascontiguousarray(down[kept]), np.ascontiguousarray(up[kept].T), bias.astype(np.float32))


def corrections(
    source: Source, *, namespace: str = "default", name: str = "default", version: str | int | None = None, layers: Layers | None = None
) -> Corrections:
    """
    What is served, or a version of it.

    Parameters
    ----------
    source : SonaEngine, Router, path or URL
        Of a store nothing but what it keeps is read, also while a process learns for it: what that learned since it last saved is missing.
    namespace, name : str
        Where `source` is a store.
    version : str or int, optional
        Number or id. Layers that it does not hold are as they are, which is what `publish` would serve.
    layers : Layers, optional
        Default: what the store has.

    Raises
    ------
    SonaStoreError, SonaCorruptError, SonaVersionError
        No such store, namespace or state, or it is damaged.
    SonaValueError
        No such version.
    """
    if isinstance(source, Router):
        source = source.engine
    if isinstance(source, SonaEngine):
        factors = [Factors.of(adapter) for adapter in source.adapters]
        if layers is None and source.store is not None:
            layers = get_layers(source.store, source.name)
        return _chosen(factors, layers, source.name, [] if version is None else source.versions(), version)
    with opened(source, namespace) as store:
        kept = store.get_state(name)
        if kept is None:
            raise SonaStoreError(f"{store.path}: there is no state {name!r} in namespace {namespace!r} (--name)")
        factors = layers_of(decode_state(kept[0])[0], f"{store.path}: state {name!r}")
        layers = get_layers(store, name) if layers is None else layers
        return _chosen(factors, layers, name, [] if version is None else StoredVersions(store, name).all(), version)


def _chosen(factors: list[Factors], layers: Layers | None, name: str, versions: list[Version], wanted: str | int | None) -> Corrections:
    if wanted is None:
        return Corrections(tuple(factors), layers, name)
    version = find(versions, wanted)
    version.check(factors[0].down.shape[1], len(factors))
    return Corrections((*version.layers, *factors[len(version.layers) :]), layers, version.id)


@contextmanager
def opened(path: str | os.PathLike[str], namespace: str) -> Iterator[Store]:
    """A store that is there already; SonaStoreError when it, or the namespace, is not."""
    known = namespaces_of(path)
    if namespace not in known:
        raise SonaStoreError(f"{shown(path)}: expected one of the namespaces {', '.join(known)}, got {namespace!r}")
    with open_store(path, namespace=namespace) as store:
        yield store
