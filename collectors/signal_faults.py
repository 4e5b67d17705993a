"""What a sensor's samples say of the sensor: clipped, or dead. The windower flags windows by the same rules.

C channels, N samples.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

FEWEST_FLAT: Final = 11  # fewer equal samples in a row say nothing


def count_clipped(samples_CN: NDArray[Any], full_scale: float = 0.0) -> int:
    """Samples of which a channel is at +-full_scale or beyond, or, without one, at the end of its integer type."""
    if full_scale:
        high, low = full_scale, -full_scale
    elif samples_CN.dtype.kind == "i":
        limits = np.iinfo(samples_CN.dtype)
        high, low = limits.max, limits.min
    else:
        return 0
    return int(((samples_CN >= high) | (samples_CN <= low)).any(axis=0).sum())


def is_flat(samples_CN: NDArray[Any]) -> bool:
    """A channel holds one value through at least FEWEST_FLAT samples: a real sensor has noise."""
    return samples_CN.shape[1] >= FEWEST_FLAT and bool((np.ptp(samples_CN, axis=1) == 0).any())
