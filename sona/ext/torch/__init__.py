"""Adapters in a torch model: `attach` puts them in, an engine underneath learns. Needs the extra `torch`."""

from sona.errors import MissingExtraError

try:
    import torch as _torch
except ImportError as error:
    raise MissingExtraError("sona.ext.torch needs torch: pip install 'sona[torch]'") from error

from sona.ext.torch.attached import Attached, Request, attach

__all__ = ["Attached", "Request", "attach"]

del _torch
