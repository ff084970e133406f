"""What a policy has learned, as named arrays: its adapter's rows, its instant step and what it believes of arms and frozen model."""

from typing import Any

import numpy as np
import numpy.typing as npt

from sona.adapters import Adapter, Factors
from sona.config import SonaConfig
from sona.errors import SonaCorruptError, SonaValueError
from sona.loops._instant import Instant
from sona.loops._policy import Policy

Arrays = dict[str, npt.NDArray[Any]]


def new_adapter(config: SonaConfig) -> Adapter:
    """An adapter that adds nothing yet."""
    return Adapter(
        config.hidden_dim,
        rank=config.base_lora_rank,
        rank_max=config.base_lora_rank_max,
        micro=config.micro_lora_rank,
        max_discard=config.max_discard,
    )


def new_instant(config: SonaConfig) -> Instant:
    """The instant step of an adapter that has learned nothing yet."""
    return Instant(config.hidden_dim, config.p0, config.bias_input, config.precondition)


def part(arrays: Arrays, prefix: str) -> Arrays:
    """Those whose names begin so, without it."""
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


def rows_of(adapter: Adapter) -> Arrays:
    """What `put_rows` takes."""
    return dict(zip(("down", "up", "offset"), adapter.rows(), strict=True)) | {"base": np.array([adapter.info()["base"]])}


def put_rows(adapter: Adapter, arrays: Arrays) -> None:
    """Replace all rows."""
    adapter.assign(arrays["down"], arrays["up"], arrays["offset"], int(arrays["base"][0]))


def layers_of(arrays: Arrays, what: str) -> list[Factors]:
    """The corrections of a kept state by layer, at least one; SonaCorruptError, naming `what`, for a state of something else."""
    found: list[Factors] = []
    try:
        while f"layer{len(found)}.down" in arrays:
            found.append(Factors(*(arrays[f"layer{len(found)}.{key}"] for key in ("down", "up", "offset"))))
    except (KeyError, SonaValueError) as error:
        raise SonaCorruptError(f"{what} is not that of an engine: {error}") from error
    if not found:
        raise SonaCorruptError(f"{what} is not that of an engine")
    return found


def learned(policy: Policy) -> Arrays:
    """Everything that a policy with an adapter and an instant step of its own has learned."""
    return rows_of(policy.adapter) | policy.instant.state() | {f"policy.{key}": value for key, value in policy.state().items()}


def put_learned(policy: Policy, arrays: Arrays) -> None:
    """Put back what `learned` returned; SonaValueError for anything else, which may leave a part of it."""
    try:
        policy.instant.restore(arrays)
        put_rows(policy.adapter, arrays)
        policy.restore(part(arrays, "policy."))
    except (KeyError, IndexError, TypeError) as error:
        raise SonaValueError(f"expected what a learner keeps, got {error!r}") from error


def partner_of(policy: Policy, adapter: Adapter, instant: Instant) -> Policy:
    """A policy over an adapter and an instant step of its own, with the same arms and no guard; it remembers nothing."""
    other = Policy(adapter, instant, tau=policy.tau, guard=False, pending=1)
    other.take_arms(policy)
    return other
