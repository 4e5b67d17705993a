"""What a Linux industrial I/O buffer holds: scan elements as sysfs describes them, and their bytes into counts.

C channels, N samples.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from infomae_stream.errors import SourceError

TIMESTAMP: Final = "timestamp"
_TYPE = re.compile(r"(be|le):([su])(\d+)/(\d+)(?:X(\d+))?>>(\d+)")


@dataclass(frozen=True, slots=True)
class ScanElement:
    """`in_accel_x`'s place in a record: `le:s12/16>>4` is 12 signed bits, stored in 16, to be shifted right by 4."""

    name: str
    index: int
    big_endian: bool
    signed: bool
    bits: int
    storage_bits: int
    shift: int

    @classmethod
    def parse(cls, name: str, index: str, described: str) -> ScanElement:
        """From the files `<name>_index` and `<name>_type`. Raises SourceError."""
        found = _TYPE.fullmatch(described.strip())
        if found is None or int(found[4]) not in (8, 16, 32, 64) or not index.strip().isdigit():
            raise SourceError(f"scan element {name}: type {described.strip()!r} is unknown")
        endian, sign, bits, storage, repeat, shift = found.groups()
        if repeat not in (None, "1") or not 0 < int(bits) + int(shift) <= int(storage):
            raise SourceError(f"scan element {name}: type {described.strip()!r} is not supported")
        return cls(name, int(index), endian == "be", sign == "s", int(bits), int(storage), int(shift))

    @property
    def full_scale(self) -> float:
        return float(2 ** (self.bits - 1) - 1) if self.signed else float(2**self.bits - 1)

    def counts(self, raw_N: NDArray[Any]) -> NDArray[np.int64]:
        """Stored words (unsigned) -> values, shape (N,)."""
        value_N: NDArray[np.uint64] = (raw_N >> raw_N.dtype.type(self.shift)).astype(np.uint64)
        value_N &= np.uint64(2**self.bits - 1)
        if self.signed:
            sign = np.uint64(2 ** (self.bits - 1))
            value_N = (value_N ^ sign) - sign
        return value_N.astype(np.int64)


class RecordLayout:
    """The enabled elements in the order of their index, each aligned to its own size, as the kernel packs them."""

    def __init__(self, elements: Sequence[ScanElement]) -> None:
        self.elements = sorted(elements, key=lambda e: e.index)
        offset, offsets, widest = 0, [], 1
        for element in self.elements:
            size = element.storage_bits // 8
            offset = (offset + size - 1) // size * size
            offsets.append(offset)
            offset, widest = offset + size, max(widest, size)
        self.record_bytes = (offset + widest - 1) // widest * widest
        formats = [f"{'>' if e.big_endian else '<'}u{e.storage_bits // 8}" for e in self.elements]
        names = [e.name for e in self.elements]
        self._dtype = np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": self.record_bytes})

    def decode(self, data: bytes) -> dict[str, NDArray[np.int64]]:
        """Whole records -> the values of each element, shape (N,) each."""
        records_N = np.frombuffer(data, dtype=self._dtype)
        return {e.name: e.counts(records_N[e.name]) for e in self.elements}
