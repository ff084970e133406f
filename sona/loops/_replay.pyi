import numpy as np
import numpy.typing as npt

from sona._arrays import Floats
from sona.loops._policy import Policy

def remembered(
    policy: Policy, limit: int, since: int = 0
) -> tuple[
    npt.NDArray[np.uint64],
    Floats,
    npt.NDArray[np.int32],
    Floats,
    npt.NDArray[np.bool_],
    Floats,
    npt.NDArray[np.int64],
    npt.NDArray[np.int32],
]: ...
def learn_rows(
    policy: Policy,
    x: Floats,
    arm: npt.NDArray[np.int32],
    reward: Floats,
    weight: Floats,
    start: npt.NDArray[np.int64],
    candidates: npt.NDArray[np.int32],
    order: npt.NDArray[np.int64],
) -> None: ...
def score_rows(
    policy: Policy, x: Floats, arm: npt.NDArray[np.int32], start: npt.NDArray[np.int64], candidates: npt.NDArray[np.int32]
) -> tuple[Floats, npt.NDArray[np.int32]]: ...
