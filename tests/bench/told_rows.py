"""Rows of a benchmark that runs on a GPU, each told on a line of JSON as soon as it is measured: what
ends the benchmark costs only what would have come after."""

import gc
import json
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple, TextIO

import torch

Step = Callable[[], object]


class Row(NamedTuple):
    """One figure of the table. One without a value says in `detail` why there is none."""

    what: str
    value: float | None
    unit: str = ""
    detail: str = ""


def tell(row: Row, out: TextIO | None = None) -> None:
    """Print the row as a line of JSON, on stdout unless another file is given."""
    print(json.dumps(row._asdict()), file=out, flush=True)


def attempt(what: str, measure: Callable[[], Row]) -> Row:
    """Measure and tell the row, or tell in its place what went wrong; memory of the device is given
    back either way."""
    try:
        row = measure()
    except Exception as error:  # whatever it is, the next row is measured
        lines = str(error).strip().splitlines() or [""]
        row = Row(what, None, detail=f"failed: {type(error).__name__}: {lines[0][:200]}")
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    tell(row)
    return row


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def step_seconds(step: Step, device: torch.device, *, rounds: int) -> float:
    """The median time of so many steps after as many others, at most three; the device has finished
    each."""
    found, warm_up = [], min(3, rounds)
    for number in range(warm_up + rounds):
        synchronise(device)
        began = time.perf_counter()
        step()
        synchronise(device)
        if number >= warm_up:
            found.append(time.perf_counter() - began)
    return statistics.median(found)


def product_rate(device: torch.device, size: int, dtype: torch.dtype) -> float:
    """Operations a second of products of square matrices [size, size]: what the device's arithmetic
    reaches, beside which steps are shown."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = step_seconds(lambda: left @ right, device, rounds=20)
    return 2 * size**3 / seconds


def peak_gb(device: torch.device) -> str:
    """The most memory that tensors have taken on the device so far, in words."""
    if device.type != "cuda":
        return "memory is not measured"
    return f"{torch.cuda.max_memory_allocated(device) / 1e9:,.1f} GB at most"
