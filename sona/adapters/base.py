"""BaseLoRA: the adapters of all layers, of any rank."""

import os
from pathlib import Path

import numpy as np

from sona._arrays import Floats, output
from sona._files import replace_file
from sona.adapters._layers import forward_layers
from sona.adapters._lora import Adapter
from sona.errors import SonaCorruptError, SonaStoreError, SonaValueError


class BaseLoRA:
    """
    One low-rank adapter per layer; W' = W + delta with y = x W.

    Parameters
    ----------
    hidden_dim : int
        Length of x and y.
    rank : int
        Rank of each layer's correction after a truncation; scale = alpha / rank with alpha = rank, hence 1.
    num_layers : int
    rank_max : int, optional
        See `Adapter`.
    isa : str, optional
        Kernel table.

    Attributes
    ----------
    layers : tuple of Adapter
    """

    def __init__(
        self, hidden_dim: int, rank: int = 8, num_layers: int = 12, *, rank_max: int | None = None, isa: str | None = None
    ) -> None:
        if num_layers < 1:
            raise SonaValueError(f"num_layers: expected at least 1, got {num_layers}")
        if not 1 <= rank <= hidden_dim:
            raise SonaValueError(f"rank: expected 1 to hidden_dim={hidden_dim}, got {rank}")
        self.hidden_dim = hidden_dim
        self.rank = rank
        self.alpha = float(rank)
        self.layers = tuple(Adapter(hidden_dim, rank=rank, rank_max=rank_max, isa=isa) for _ in range(num_layers))

    def _layer(self, index: int) -> Adapter:
        if not 0 <= index < len(self.layers):
            raise SonaValueError(f"layer: expected 0 to {len(self.layers) - 1}, got {index}")
        return self.layers[index]

    def forward_layer(self, layer: int, x: Floats, out: Floats) -> None:
        """out += delta_layer(x); x and out have shape (hidden_dim,)."""
        self._layer(layer).forward(x, out)

    def forward(self, x: Floats, out: Floats) -> None:
        """out[i] += delta_i(x[i]) for every layer i; x and out have shape (num_layers, hidden_dim)."""
        forward_layers(self.layers, x, out)

    def merge_weights(self, weights: Floats, layer: int) -> None:
        """weights += delta, in place: x @ weights then includes what `forward_layer` adds. weights is (hidden_dim, hidden_dim) float32."""
        weights = output(weights, (self.hidden_dim, self.hidden_dim), "weights")
        weights += self._layer(layer).delta()

    def param_count(self) -> int:
        """Numbers that are learned."""
        return sum(layer.down.size + layer.up.size for layer in self.layers)

    def save(self, path: str | os.PathLike[str]) -> None:
        """
        Write one safetensors file with down and up of every layer; durable on return, and the file before is there until then.

        Raises
        ------
        SonaStoreError
            The file cannot be written; the one before is intact.
        """
        from safetensors.numpy import save

        arrays: dict[str, Floats] = {}
        for index, layer in enumerate(self.layers):
            arrays |= {f"{index}.down": layer.down, f"{index}.up": layer.up, f"{index}.offset": layer.offset}
        content = save({name: np.ascontiguousarray(a) for name, a in arrays.items()}, {"hidden_dim": str(self.hidden_dim)})
        where = Path(path)
        try:
            replace_file(where, content)
        except OSError as error:
            raise SonaStoreError(f"{where}: {error.strerror or error}") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, isa: str | None = None) -> "BaseLoRA":
        """Read what `save` wrote."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            arrays = load_file(Path(path))
            layers = 1 + max(int(name.split(".")[0]) for name in arrays)
            shapes = [arrays[f"{index}.down"].shape for index in range(layers)]
            base = cls(shapes[0][1], min(max(1, *(rows for rows, _ in shapes)), shapes[0][1]), layers, isa=isa)
            for index, layer in enumerate(base.layers):
                layer.assign(arrays[f"{index}.down"], arrays[f"{index}.up"], arrays[f"{index}.offset"])
        except (SafetensorError, KeyError, ValueError, IndexError, TypeError) as error:
            raise SonaCorruptError(f"{path}: expected the layers that BaseLoRA.save writes, got: {error}") from error
        return base
