"""Parquet, one row a sample: `recording` (number of the stretch), `time_ns`, one column a channel with its counts.

The description of the stream stands in the schema's metadata too, so that a node can replay the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from infomae_stream.types import StreamSpec
from storage.exports import ExportOptions, Piece, Stretch, column_names

_ROWS: Final = 65_536


class ParquetFormat:
    suffix = ".parquet"
    irregular = True
    one_stretch = False

    def __init__(self, path: Path, spec: StreamSpec, dtype: np.dtype[Any], options: ExportOptions) -> None:
        names = column_names(spec, ("recording", "time_ns"))
        metadata = {
            **{name: json.dumps(list(getattr(spec, name))) for name in ("units", "sensitivity")},
            "channels": json.dumps(names),
            "kind": spec.kind,
            "modality": spec.modality,
            "rate_hz": repr(spec.rate_hz),
            "stream": str(spec.id),
        }
        fields = [("recording", pa.dictionary(pa.int32(), pa.string())), ("time_ns", pa.int64())]
        fields += [(name, pa.from_numpy_dtype(dtype)) for name in names]
        self._schema = pa.schema(fields, metadata)
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd", use_dictionary=["recording"])
        self._waiting: list[pa.RecordBatch] = []
        self._rows = 0

    def add(self, piece: Piece, stretch: Stretch) -> None:
        n = piece.n_samples
        name = pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), pa.array([f"{stretch.number:06}"]))
        columns = [
            name,
            pa.array(piece.sample_times_ns()),
            *(pa.array(np.ascontiguousarray(c)) for c in piece.samples_CN),
        ]
        self._waiting.append(pa.RecordBatch.from_arrays(columns, schema=self._schema))
        self._rows += n
        if self._rows >= _ROWS:
            self._flush()

    def close(self) -> None:
        try:
            self._flush()
        finally:
            self._writer.close()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.Table.from_batches(self._waiting).unify_dictionaries())
        self._waiting, self._rows = [], 0

    @staticmethod
    def check(specs: Sequence[StreamSpec], options: ExportOptions) -> None:
        """Parquet takes everything."""

    @staticmethod
    def read(path: Path, description: dict[str, Any]) -> Iterator[tuple[int, NDArray[Any], NDArray[np.int64] | None]]:
        index = 0
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_ROWS):
                samples_CN = np.stack([column.to_numpy(zero_copy_only=False) for column in batch.columns[2:]])
                yield index, samples_CN, batch.column(1).to_numpy()
                index += batch.num_rows
