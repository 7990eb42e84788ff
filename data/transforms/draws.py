"""Uniform random numbers brought to a range."""

import numpy as np
from numpy.typing import NDArray


def between(low: float, high: float, uniform: NDArray[np.float64]) -> NDArray[np.float64]:
    """Numbers in [low, high), from numbers in [0, 1)."""
    return low + uniform * (high - low)


def whole_between(low: int, high: int, uniform: NDArray[np.float64]) -> NDArray[np.float64]:
    """Whole numbers from low to high, both among them, from numbers in [0, 1)."""
    return np.floor(between(low, high + 1, uniform))
