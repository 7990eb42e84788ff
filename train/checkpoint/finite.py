"""Whether tensors hold only finite numbers: what does not is never committed, since the run that
resumes from it cannot be saved."""

from collections.abc import Iterable

from torch import Tensor

from manyfaces.configs.errors import UserError
from manyfaces.train.checkpoint.progress import MOVED

_PART = 1 << 24


def refuse_not_finite(tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Raise `UserError` with the name of the first tensor that holds an infinity or NaN. Each is
    read once, without a copy of the whole."""
    for name, tensor in tensors:
        if tensor.is_floating_point() and tensor.numel():
            if not all(map(_is_finite, _parts(tensor))):
                raise UserError(f"{name} is not finite")
            MOVED.add(tensor.nbytes)


def _parts(tensor: Tensor) -> Iterable[Tensor]:
    """The tensor, or parts of it in float32 where torch does not compare numbers of its type."""
    if tensor.itemsize > 1:
        return [tensor]
    return (part.float() for part in tensor.flatten().split(_PART))


def _is_finite(tensor: Tensor) -> bool:
    low, high = tensor.aminmax()  # either is NaN where one number is
    return bool(low.isfinite() and high.isfinite())
