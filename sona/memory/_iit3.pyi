import numpy as np
import numpy.typing as npt

NODES: int
RESOLUTION: float
WORK: int

Side = tuple[float, int, int, int, npt.NDArray[np.float64]]

def solve(
    tpm: npt.NDArray[np.float64], cm: npt.NDArray[np.uint8], state: int
) -> tuple[float, list[int], list[tuple[int, float, Side, Side]]]: ...
def reachable(tpm: npt.NDArray[np.float64], state: int) -> bool: ...
def work(tpm: npt.NDArray[np.float64]) -> int: ...
def distance(p: npt.NDArray[np.float64], q: npt.NDArray[np.float64]) -> float: ...
