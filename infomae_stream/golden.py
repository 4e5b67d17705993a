"""Golden vectors: windows and the scores that the trainer got for them, so that a node can prove it computes the same.

An npz without pickles and without compression. Legend: B windows, C channels, N samples, K classes.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from infomae_stream.errors import BundleError

ALL: Final = "all"  # key of the scores with every modality present
MAX_WINDOWS: Final = 64
_MAX_ENTRIES: Final = 64


@dataclass(frozen=True, slots=True, eq=False)
class Golden:
    """windows: modality -> x_BCN float32, row b of every modality is the same instant.

    scores: modality -> scores_BK float64 of that modality alone, and "all" -> of all together.
    """

    windows: Mapping[str, NDArray[np.float32]]
    scores: Mapping[str, NDArray[np.float64]]

    @property
    def n_windows(self) -> int:
        return int(next(iter(self.windows.values())).shape[0])

    def dump(self) -> bytes:
        """The file: `x_<modality>_BCN` float32, `scores_<modality>_BK` and `scores_all_BK` float64."""
        arrays: dict[str, NDArray[Any]] = {}
        for name, x_BCN in self.windows.items():
            arrays[f"x_{name}_BCN"] = np.asarray(x_BCN, dtype=np.float32)
        for name, scores_BK in self.scores.items():
            arrays[f"scores_{name}_BK"] = np.asarray(scores_BK, dtype=np.float64)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            for name in sorted(arrays):
                member = io.BytesIO()
                np.lib.format.write_array(member, arrays[name], allow_pickle=False)
                # A fixed date, so that the same vectors make the same bytes.
                archive.writestr(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), member.getvalue())
        return buffer.getvalue()

    @classmethod
    def load(cls, content: bytes | memoryview, where: str) -> Golden:
        """Raises BundleError: contract when it is not what `dump` writes, not_finite for NaN or infinity."""
        try:
            arrays = _load_arrays(content)
        except (ValueError, KeyError, EOFError, OSError, RuntimeError, zipfile.BadZipFile) as e:
            raise BundleError(f"golden vectors cannot be read: {e}", reason="contract", where=where) from e
        windows: dict[str, NDArray[np.float32]] = {}
        scores: dict[str, NDArray[np.float64]] = {}
        for name, array in arrays.items():
            if name.startswith("x_") and name.endswith("_BCN") and array.dtype == np.float32 and array.ndim == 3:
                windows[name[2:-4]] = array
            elif name.startswith("scores_") and name.endswith("_BK") and array.dtype == np.float64 and array.ndim == 2:
                scores[name[7:-3]] = array
            else:
                raise BundleError(f"golden vectors hold an unknown array {name!r}", reason="contract", where=where)
            if not np.isfinite(array).all():
                raise BundleError(f"golden vectors: {name} is not finite", reason="not_finite", where=where)
        if not windows or set(scores) != {*windows, ALL}:
            raise BundleError("golden vectors lack windows or scores", reason="contract", where=where)
        rows = {array.shape[0] for array in arrays.values()}
        if len(rows) != 1 or not 1 <= rows.pop() <= MAX_WINDOWS:
            raise BundleError(f"golden vectors are not 1 to {MAX_WINDOWS} windows", reason="contract", where=where)
        return cls(windows, scores)


def _load_arrays(content: bytes | memoryview) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
        if len(entries) > _MAX_ENTRIES or sum(entry.file_size for entry in entries) > len(content):
            raise ValueError("too many or inflating entries")
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED or not entry.filename.endswith(".npy"):
                raise ValueError(f"entry {entry.filename!r} is compressed or no array")
            with archive.open(entry) as f:
                arrays[entry.filename.removesuffix(".npy")] = np.lib.format.read_array(f, allow_pickle=False)
    return arrays
