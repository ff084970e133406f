import numpy as np
import numpy.typing as npt

NODES: int
EXHAUSTED: int
CROSSOVER: int
ALPHA: float
ASYMMETRY: float

def compute(
    weights: npt.NDArray[np.float64], alpha: float, directed: bool, normalise: bool, method: int
) -> tuple[float, float, tuple[int, ...], tuple[int, ...], int] | None: ...
def subgraphs(
    start: npt.NDArray[np.int64],
    stop: npt.NDArray[np.int64],
    column: npt.NDArray[np.int32],
    weight: npt.NDArray[np.float32],
    member: npt.NDArray[np.int64],
    offset: npt.NDArray[np.int64],
    alpha: float,
    directed: bool,
    normalise: bool,
) -> tuple[npt.NDArray[np.float64], int]: ...
