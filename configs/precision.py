"""In which precision a network computes, where `train.precision` leaves that to the machine."""

from typing import Literal

from manyfaces.configs import this_machine
from manyfaces.configs.sections.train import Train

Precision = Literal["float32", "bfloat16"]

EMULATED = (
    "this processor has no AVX-512 or AMX instructions and computes bfloat16 in software, many "
    "times slower than float32"
)


def precision(train: Train, *, is_gpu: bool) -> Precision:
    """The precision of these settings for workers with GPUs or without, who have this computer's
    processor."""
    if train.precision != "auto":
        return train.precision
    return "bfloat16" if is_gpu or this_machine.computes_bfloat16() else "float32"


def told(train: Train, *, is_gpu: bool) -> str | None:
    """What a person should know of the precision before a run starts, if anything."""
    if is_gpu or this_machine.computes_bfloat16():
        return "train.precision auto is bfloat16 here" if train.precision == "auto" else None
    if train.precision == "auto":
        return f"train.precision auto is float32 here: {EMULATED}"
    if train.precision == "bfloat16":
        return f"train.precision bfloat16: {EMULATED}; give train.precision=float32"
    return None
