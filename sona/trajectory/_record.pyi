from typing import Final

from sona.types import QueryTrajectory

VERSION: Final = 1

def encode(trajectory: QueryTrajectory) -> bytes: ...
