"""Whether tensors hold only finite numbers: what does not is never committed, since the run that
resumes from it cannot be saved."""

from collections.abc import Iterable

from torch import Tensor

from manyfaces.configs.errors import UserError
from manyfaces.train.checkpoint.progress import MOVED


def refuse_not_finite(tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Raise `UserError` with the name of the first tensor that holds an infinity or NaN. Each is
    read once, without a copy."""
    for name, tensor in tensors:
        if tensor.is_floating_point() and tensor.numel():
            low, high = tensor.aminmax()  # either is NaN where one number is
            if not (low.isfinite() and high.isfinite()):
                raise UserError(f"{name} is not finite")
            MOVED.add(tensor.nbytes)
