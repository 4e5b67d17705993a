"""What a training run learns from: the windows of each modality and the pairs between them.

Legend: B windows, C sensor channels, N samples, P pairs.
"""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from infomae_stream.errors import DataError

UNKNOWN_LABEL = -1


@dataclass(frozen=True)
class ModalityWindows:
    """All windows of one modality in a snapshot; every array has B rows in the same order.

    `x_BCN`: float32, physical units (IMU: acceleration xyz m/s2, rotation xyz rad/s). `start_ns_B`: int64 UTC.
    `group_B`: site (person); splits go by it. `sequence_B`: the contiguous recording that a window lies in.
    `label_B`: class index, -1 unknown.
    Raises DataError when lengths differ or a sample is not finite: such windows are refused before they come here.
    """

    modality: str
    rate_hz: float
    x_BCN: NDArray[np.float32]
    start_ns_B: NDArray[np.int64]
    group_B: NDArray[np.str_]
    sequence_B: NDArray[np.int64]
    label_B: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.x_BCN.ndim != 3:
            raise DataError(
                f"windows of shape {self.x_BCN.shape}", where=self.modality, fix="give windows x channels x samples"
            )
        count = len(self.x_BCN)
        lengths = [len(rows) for rows in (self.start_ns_B, self.group_B, self.sequence_B, self.label_B)]
        if any(length != count for length in lengths):
            raise DataError(
                f"{count} windows beside arrays of {lengths} rows", where=self.modality, fix="give one row a window"
            )
        if not np.isfinite(self.x_BCN).all():
            raise DataError(what="windows with NaN or infinity", where=self.modality, fix="refuse them before training")

    def __len__(self) -> int:
        return len(self.x_BCN)

    def take(self, index: NDArray[np.int64]) -> Self:
        """The windows at `index`, in that order."""
        return replace(
            self,
            x_BCN=self.x_BCN[index],
            start_ns_B=self.start_ns_B[index],
            group_B=self.group_B[index],
            sequence_B=self.sequence_B[index],
            label_B=self.label_B[index],
        )


@dataclass(frozen=True)
class TrainSet:
    """Windows by modality, pairs as (P, 2) row indices into the two modalities, and the names of the classes.

    Raises DataError when a pair points outside its windows or a label outside the classes.
    """

    modalities: dict[str, ModalityWindows]
    pairs: dict[tuple[str, str], NDArray[np.int64]]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        for windows in self.modalities.values():
            if len(windows) and windows.label_B.max() >= len(self.classes):
                raise DataError(
                    what=f"label {windows.label_B.max()} of {len(self.classes)} classes",
                    where=windows.modality,
                    fix="index labels into TrainSet.classes, -1 for unknown",
                )
        for names, index_P2 in self.pairs.items():
            for column, name in enumerate(names):
                rows = index_P2[:, column]
                count = len(self.modalities.get(name, ()))
                if len(rows) and not 0 <= rows.min() <= rows.max() < count:
                    raise DataError(f"pair index outside {name}", where="->".join(names), fix="index into its windows")

    def labelled(self) -> list[str]:
        """Modalities with at least one labelled window, in order of name."""
        return sorted(name for name, windows in self.modalities.items() if (windows.label_B >= 0).any())

    def unpaired_count(self) -> int:
        """Windows that no pair names."""
        used: dict[str, set[int]] = {name: set() for name in self.modalities}
        for names, index_P2 in self.pairs.items():
            for column, name in enumerate(names):
                used[name].update(index_P2[:, column].tolist())
        return sum(len(windows) - len(used[name]) for name, windows in self.modalities.items())
