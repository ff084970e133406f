from typing import Any

import numpy as np
import numpy.typing as npt

from sona.memory.csr import Csr

def walks(
    csr: Csr,
    starts: Any,
    length: int,
    *,
    seed: int,
    temperature: float = 1.0,
    revisit: float = 0.5,
    restart: float = 0.0,
    jump: float = 0.0,
) -> npt.NDArray[np.int32]: ...
def cumulate(
    start: npt.NDArray[np.int64], stop: npt.NDArray[np.int64], weight: npt.NDArray[np.float32], cumulative: npt.NDArray[np.float32]
) -> None: ...
