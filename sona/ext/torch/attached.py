"""Hooks in a torch model, one engine underneath, and learning from a log-probability by autograd."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from sona.config import SonaConfig
from sona.engine import SonaEngine, Store
from sona.errors import SonaTypeError, SonaValueError, SonaVersionError
from sona.ext.layers import Layers, get_layers, put_layers, save_named
from sona.ext.torch._forward import Forward, Place, count_using
from sona.ext.torch.gradient import pairs_of, shared_step
from sona.ext.torch.places import find
from sona.ext.torch.unfuse import unfuse


@dataclass(eq=False)
class Request:
    """
    One recorded request: what went through the adapters while `Attached.record` was open.

    Thread-safety: one thread.
    """

    attached: "Attached"
    seen: dict[int, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)

    def scores(self, logp: Tensor) -> dict[int, list[tuple[Tensor, Tensor]]]:
        """(x, v) of every layer that was passed, once per pass: its input (tokens, in) and d logp / d (what it adds), (tokens, out)."""
        if not isinstance(logp, Tensor) or logp.numel() != 1 or not logp.requires_grad:
            raise SonaValueError("logp: expected one number that depends on the recorded outputs, as a tensor with a gradient")
        probes = [(layer, x, probe) for layer, passes in self.seen.items() for x, probe in passes]
        if not probes:
            raise SonaValueError("learn: expected a request that passed an adapter inside record(), got none")
        slopes = torch.autograd.grad(logp.reshape(()), [probe for *_, probe in probes], retain_graph=True, allow_unused=True)
        result: dict[int, list[tuple[Tensor, Tensor]]] = {}
        for (layer, x, probe), slope in zip(probes, slopes, strict=True):
            v = torch.zeros_like(probe) if slope is None else slope
            result.setdefault(layer, []).append((x.reshape(-1, x.shape[-1]), v.reshape(-1, v.shape[-1])))
        return result

    def learn(self, logp: Tensor, *, reward: float | None = None, expected: float | None = None) -> int:
        """
        Learn from the outcome of this request.

        Parameters
        ----------
        logp : Tensor of one number
            Log-probability of the action that was taken.
        reward : float, optional
            In the engine's range; None when it comes later, by `attached.engine.feedback(id, reward)`.
        expected : float, optional
            Probability of the action; without it a running mean of rewards stands in, which learns slower.

        Returns
        -------
        int
            The id of the trajectory.
        """
        return self.attached._learn(self.scores(logp), reward, expected)


P0 = 0.3  # of layers with many tokens, whose inputs are scaled in each request: measured, docs/transformers.md

_request: ContextVar[Request | None] = ContextVar("sona_request", default=None)
_sets: ContextVar[tuple[SonaEngine | None, ...] | None] = ContextVar("sona_sets", default=None)


class Attached:
    """
    Adapters in a model; made by `attach`.

    Attributes
    ----------
    engine : SonaEngine
        What learns: versions, rollback, feedback, store.
    layers : Layers
        Its layers by number.

    Thread-safety
    -------------
    Forward passes of the model: any thread, also while another learns, publishes or rolls back. Learning: one thread at a time.
    """

    def __init__(self, model: nn.Module, layers: Layers, engine: SonaEngine) -> None:
        self.engine, self.layers = engine, layers
        self._width = layers.width
        modules = dict(model.named_modules())
        self._places = [Place(self, number, engine.adapters[number], layer) for number, layer in enumerate(layers)]
        self._forwards = [
            Forward(modules[layer.name], place, layer.kind == "linear")
            for place, layer in zip(self._places, layers, strict=True)
            if layer.kind != "pooled"
        ]
        self._undo = unfuse(model, [layer.name for layer in layers if layer.kind != "pooled"])

    def pooled(self, y: Tensor) -> Tensor:
        """y + delta(y), of shape (..., hidden): the pooled output with its correction. After `detach` y itself."""
        if self.layers[0].kind != "pooled":
            raise SonaValueError("pooled: expected a model attached with layers='pooled', got hooked modules")
        place = self._places[0]
        return place.corrected(y, y) if place.on else y

    @contextmanager
    def record(self) -> Iterator[Request]:
        """Record one request, with gradients on, also inside `torch.no_grad()`; its `learn` takes the log-probability of what was done."""
        if torch.is_inference_mode_enabled():
            raise SonaValueError("record: expected torch.no_grad() or gradients, got torch.inference_mode(), which keeps none")
        request = Request(self)
        token = _request.set(request)
        try:
            with torch.enable_grad():
                yield request
        finally:
            _request.reset(token)

    @contextmanager
    def using(self, engines: Sequence[SonaEngine | None]) -> Iterator[None]:
        """
        Inside, row i of each batch is corrected by engine i, one per request; None for the frozen model.

        Engines have the same configuration as the own one.
        """
        for engine in engines:
            if engine is not None and (engine.config.hidden_dim, engine.config.num_layers) != (self.layers.width, len(self.layers)):
                raise SonaValueError(f"using: expected engines of {len(self.layers)} layers of {self.layers.width}, got {engine!r}")
        token = _sets.set(tuple(engines))
        count_using(1)
        try:
            yield
        finally:
            count_using(-1)
            _sets.reset(token)

    def save(self, path: str) -> None:
        """A snapshot of the engine with the names of its layers."""
        save_named(self.engine, self.layers, path)

    def detach(self) -> None:
        """Give the modules their own forwards back: the model is what it was. The engine stays open."""
        for forward in self._forwards:
            forward.detach()
        for place in self._places:
            place.on = False
        for undo in self._undo:
            undo()
        self._undo.clear()

    def close(self) -> None:
        """Detach, and close the engine."""
        self.detach()
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- forward ----

    def _corrected(self, place: Place, x: Tensor, y: Tensor) -> Tensor:
        """y + delta(x) of one layer, whatever the tensors are; y itself where nothing is added."""
        sets = _sets.get()
        if sets is None:
            corrected: Tensor = self._added(self.engine, place.number, x, y) if torch.is_grad_enabled() else place.alone(x, y)
            return corrected
        if len(y) != len(sets):
            raise SonaValueError(f"using: expected a batch of {len(sets)} rows, as many as engines, got {len(y)}")
        served: Tensor | None = place.each_corrected(sets, x, y)
        if served is not None:
            return served
        return torch.stack([b if each is None else self._added(each, place.number, a, b) for each, a, b in zip(sets, x, y, strict=True)])

    def _added(self, engine: SonaEngine, number: int, x: Tensor, y: Tensor) -> Tensor:
        if not engine.enabled:
            return y
        adapter, layer, request = engine.adapters[number], self.layers[number], _request.get()
        if x.shape[-1] != layer.in_features or y.shape[-1] != layer.out_features:
            expected, got = (layer.in_features, layer.out_features), (x.shape[-1], y.shape[-1])
            raise SonaValueError(f"layer {layer.name!r}: expected {expected} numbers in and out, got {got}")
        recording = request is not None and request.attached is self and engine is self.engine
        if recording or (torch.is_grad_enabled() and (x.requires_grad or y.requires_grad)):
            down, up, offset = (torch.from_numpy(a).to(x.device, x.dtype) for a in adapter.rows())
            out = y
            if len(down):
                out = y + adapter.scale * ((x @ down[:, : layer.in_features].T + offset) @ up[:, : layer.out_features]).to(y.dtype)
            if recording and request is not None:
                probe = torch.zeros_like(out, requires_grad=True)
                request.seen.setdefault(number, []).append((x.detach(), probe))
                out = out + probe
            return out
        if adapter.info()["total"] == 0 or y.numel() == 0:
            return y
        width = self._width
        rows = x.detach().reshape(-1, x.shape[-1]).to("cpu", torch.float32).contiguous()
        if x.shape[-1] < width:
            rows = functional.pad(rows, (0, width - x.shape[-1]))
        if y.dtype == torch.float32 and y.device.type == "cpu" and y.shape[-1] == width:
            out = y.detach().clone(memory_format=torch.contiguous_format)
            adapter.forward_batch(rows.numpy(), out.reshape(-1, width).numpy())
            return out
        delta = np.zeros((len(rows), width), np.float32)
        adapter.forward_batch(rows.numpy(), delta)
        added = torch.from_numpy(delta)[:, : y.shape[-1]].reshape(y.shape).to(y.device)
        return (y.detach().float() + added).to(y.dtype) if y.dtype != torch.float64 else y.detach() + added

    # ---- learning ----

    def _learn(self, scores: dict[int, list[tuple[Tensor, Tensor]]], reward: float | None, expected: float | None) -> int:
        width, engine = self._width, self.engine
        arrays: dict[int, tuple[Any, Any]] = {}
        for number, passes in scores.items():
            x, v = (torch.cat([each[side] for each in passes]).to("cpu", torch.float64).numpy() for side in (0, 1))
            if not (np.isfinite(x).all() and np.isfinite(v).all()):
                raise SonaValueError(f"layer {self.layers[number].name!r}: expected finite inputs and gradients, got NaN or infinity")
            arrays[number] = x, v
        steps: list[tuple[int, Any, Any]] = []
        if len(arrays) == 1 and len(next(iter(arrays.values()))[0]) == 1:  # one token, one layer: the engine's own step, exactly
            ((number, (x, v)),) = arrays.items()
            steps.append((number, x[0], v[0]))
        else:
            found = {n: (pairs_of(x, v), max(float(np.mean(np.sum(x * x, axis=1))), 1e-12)) for n, (x, v) in arrays.items()}
            total = sum(energy / spread for (_, energy), spread in found.values())
            for number, ((pairs, _), spread) in found.items():
                instant = engine.instants[number]
                pi = instant.mean_reward if expected is None else expected
                c = instant.confidence
                p = min(c * pi, 0.99)
                curvature = c * max(p * (1 - pi) ** 2 / (1 - p), 0.01)
                for pair in pairs:
                    length = shared_step(pair.size / spread, total, curvature, instant.prior_variance)
                    steps.append((number, pair.u, length * pair.v))
        query = next(iter(arrays.values()))[0].mean(0)
        tid = engine.begin_trajectory(_padded(query, width))
        for number, x, v in steps:
            engine.add_step(tid, activations=_padded(v, width), expected=expected, layer=number, x=_padded(x, width))
        engine.end_trajectory(tid, quality=reward)
        return tid


def _padded(values: Any, width: int) -> Any:
    result = np.zeros(width, np.float32)
    result[: len(values)] = values
    return result


def attach(
    model: nn.Module,
    layers: str | Sequence[str] = "pooled",
    *,
    store: Store = None,
    name: str = "default",
    **config: Any,
) -> Attached:
    """
    Put adapters into a frozen model, with one engine underneath.

    Parameters
    ----------
    model : nn.Module
        Of transformers, or any other.
    layers : "pooled", "residual" or sequence of str
        "pooled": nothing is hooked, the caller passes pooled outputs through `Attached.pooled`. "residual": the outputs of the transformer
        blocks. Names of modules, or patterns of linear ones: "*.attention.self.query".
    store, name
        As of `SonaEngine`.
    config
        Fields of `SonaConfig`, without hidden_dim and num_layers. Where there is more than one token there is no learned constant, and the
        prior is the identity: bias_input=0, precondition="identity" and p0=0.3 are the defaults of hooked layers (docs/transformers.md).

    Raises
    ------
    SonaValueError
        No such modules.
    SonaVersionError
        The store has what another model, or other layers, learned.
    """
    if not isinstance(model, nn.Module):
        raise SonaTypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    found = find(model, layers)
    if taken := {"hidden_dim", "num_layers"} & config.keys():
        raise SonaTypeError(f"{min(taken)}: expected it from the model, got it as an option")
    if found[0].kind != "pooled":
        config = {"bias_input": 0.0, "precondition": "identity"} | config
        config["p0"] = P0 if config.get("p0") is None else config["p0"]
        if config["bias_input"] or config["precondition"] != "identity":
            raise SonaValueError(
                "layers: expected bias_input=0 and precondition='identity' for hooked modules, where requests have many tokens"
            )
    made = SonaConfig(hidden_dim=found.width, num_layers=len(found), **config)
    engine = SonaEngine(made, store=store, name=name, model_fingerprint=found.fingerprint)
    try:
        if engine.store is not None:
            kept = get_layers(engine.store, name)
            if kept is not None and kept.layers != found.layers:
                raise SonaVersionError(f"store: expected the layers {[each.name for each in found]}, got {[each.name for each in kept]}")
            if kept is None:
                put_layers(engine.store, name, found)
        return Attached(model, found, engine)
    except BaseException:
        engine.close()
        raise
