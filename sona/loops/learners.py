"""Everything that learns in an engine, and what it has learned as named arrays."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from sona.config import SonaConfig
from sona.errors import SonaTypeError, SonaValueError, SonaVersionError
from sona.loops._policy import Policy
from sona.loops.drift import Drift
from sona.loops.instant import Beside
from sona.loops.learner import learned, new_adapter, new_instant, part, put_learned, put_rows, rows_of
from sona.loops.limits import SourceLimits, Sources
from sona.loops.taught import Taught
from sona.loops.trial import Trial


def _layers_of(arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """What a state is of, for a message."""
    downs = {key: array for key, array in arrays.items() if key.startswith("layer") and key.endswith(".down")}
    dims = sorted({str(array.shape[1]) if array.ndim == 2 else "none" for array in downs.values()})
    return f"{len(downs)} layer{'s' * (len(downs) != 1)} of dim {', '.join(dims)}" if downs else "none"


class Learners:
    """
    An adapter and an instant step per layer, and over the first layer a policy, its partner in a pool, and a candidate on trial.

    Parameters
    ----------
    config : SonaConfig
    limits : SourceLimits or None
        What a source of the policy's rewards may do; None: anything.

    Attributes
    ----------
    adapters, instants : tuple
        One of each per layer.
    sources : Sources
    policy : Policy or None
        None until its owner sets it, before anything is restored.
    drift : Drift or None
        Of the policy; the same.
    trial : Trial or None
        The one that is on.
    unlogged : int
        Rewards learned that no log has: of trajectories, and of a warm start.
    taught : Taught
        Which trajectories, and what of which rings, are in here.
    beside : Beside or None
        What else learns from trajectories; None until its owner sets it, before anything is restored.
    """

    def __init__(self, config: SonaConfig, limits: SourceLimits | None) -> None:
        self.config = config
        self.adapters = tuple(new_adapter(config) for _ in range(config.num_layers))
        self.instants = tuple(new_instant(config) for _ in range(config.num_layers))
        self.sources = Sources(limits)
        self.policy: Policy | None = None
        self.drift: Drift | None = None
        self.trial: Trial | None = None
        self.unlogged = 0
        self.taught = Taught()
        self.beside: Beside | None = None

    def learn(self, id: int, reward: float, source: str | None) -> bool:
        """The reward in [0, 1] of a decision of the policy, for what its source counts; see `Sources.learn`."""
        assert self.policy is not None
        return self.sources.learn(self.policy, id, reward, source)

    def begin_trial(self, trial: Trial) -> None:
        """From now on this one is on; with none before."""
        self.trial = trial
        trial.begin()

    def end_trial(self) -> None:
        """No trial is on any more."""
        if self.trial is not None:
            self.trial.end()
            self.trial = None

    # ---- state ----

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Everything learned, as named arrays."""
        arrays: dict[str, npt.NDArray[Any]] = {}
        for layer, (adapter, instant) in enumerate(zip(self.adapters, self.instants, strict=True)):
            arrays |= {f"layer{layer}.{key}": value for key, value in (rows_of(adapter) | instant.state()).items()}
        if self.policy is not None:
            arrays |= {f"policy.{key}": value for key, value in self.policy.state().items()}
            if self.policy.partner is not None:
                arrays |= {f"partner.{key}": value for key, value in learned(self.policy.partner).items()}
        if self.trial is not None:
            arrays |= {f"trial.{key}": value for key, value in self.trial.state().items()}
        if self.drift is not None:
            arrays |= {f"drift.{key}": value for key, value in self.drift.state().items()}
        if self.beside is not None:
            arrays |= {f"beside.{key}": value for key, value in self.beside.state().items()}
        if self.unlogged:
            arrays["unlogged"] = np.array([self.unlogged])
        arrays |= {f"taught.{key}": value for key, value in self.taught.state().items()}
        return arrays | {f"sources.{key}": value for key, value in self.sources.state().items()}

    def restore(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        """Put back what `state` returned, for the same config; SonaVersionError, and nothing changes, when it does not fit."""
        parts = [part(arrays, f"layer{layer}.") for layer in range(len(self.adapters))]
        more = f"layer{len(parts)}.down" in arrays
        if more or any(kept.get("down", np.empty(0)).shape[1:] != (self.config.hidden_dim,) for kept in parts):
            expected = f"{len(parts)} layer{'s' * (len(parts) != 1)} of dim {self.config.hidden_dim}"
            raise SonaVersionError(f"state: expected {expected}, got {_layers_of(arrays)}")
        before = self.state()
        try:
            self.put(arrays)
        except (SonaValueError, SonaTypeError, KeyError, IndexError) as error:
            self.put(before)
            raise SonaVersionError(f"state: expected what an engine of this configuration keeps, got one where {error}") from error

    def put(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        """The same with arrays that are known to fit; an error leaves a part of them."""
        for layer, (adapter, instant) in enumerate(zip(self.adapters, self.instants, strict=True)):
            kept = part(arrays, f"layer{layer}.")
            instant.restore(kept)
            put_rows(adapter, kept)
        policy, partner, trial = part(arrays, "policy."), part(arrays, "partner."), part(arrays, "trial.")
        if self.policy is not None and policy:
            self.policy.restore(policy)
            if self.policy.partner is not None and partner:
                put_learned(self.policy.partner, partner)
        self.sources.restore(part(arrays, "sources."))
        self.taught.restore(part(arrays, "taught."))
        self.unlogged = int(arrays["unlogged"][0]) if "unlogged" in arrays else 0
        self.end_trial()
        if self.policy is not None and trial:
            self.begin_trial(Trial.restore(self.policy, new_adapter(self.config), new_instant(self.config), trial))
        if self.drift is not None:
            self.drift.restore(part(arrays, "drift."))
        if self.beside is not None:
            self.beside.restore(part(arrays, "beside."))
