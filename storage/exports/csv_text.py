"""CSV: `stretch`, `time_ns` (integer nanoseconds UTC), `time` (the same in ISO 8601), one column a channel, in counts.

Floats have as many digits as it takes to read back the same value.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from numpy.typing import NDArray

from infomae_stream.types import StreamSpec
from storage.exports import ExportOptions, Piece, Stretch, column_names

_HEAD: Final = ("stretch", "time_ns", "time")


class CsvFormat:
    suffix = ".csv"
    irregular = True
    one_stretch = False

    def __init__(self, path: Path, spec: StreamSpec, dtype: np.dtype[Any], options: ExportOptions) -> None:
        fields = [("stretch", pa.int64()), ("time_ns", pa.int64()), ("time", pa.string())]
        fields += [(name, pa.from_numpy_dtype(dtype)) for name in column_names(spec, _HEAD)]
        self._schema = pa.schema(fields)
        options_ = pa.csv.WriteOptions(quoting_style="needed")
        self._writer = pa.csv.CSVWriter(path, self._schema, write_options=options_)

    def add(self, piece: Piece, stretch: Stretch) -> None:
        times = pa.array(piece.sample_times_ns())
        iso = pc.strftime(times.cast(pa.timestamp("ns", "UTC")), format="%Y-%m-%dT%H:%M:%SZ")
        number = pa.array(np.full(piece.n_samples, stretch.number))
        columns = [number, times, iso, *(pa.array(np.ascontiguousarray(c)) for c in piece.samples_CN)]
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=self._schema))

    def close(self) -> None:
        self._writer.close()

    @staticmethod
    def check(specs: Sequence[StreamSpec], options: ExportOptions) -> None:
        """CSV takes everything."""

    @staticmethod
    def read(path: Path, description: dict[str, Any]) -> Iterator[tuple[int, NDArray[Any], NDArray[np.int64] | None]]:
        spec, dtype = StreamSpec.from_dict(description["spec"]), np.dtype(description["dtype"])
        names = column_names(spec, _HEAD)
        types = {"time_ns": pa.int64()} | dict.fromkeys(names, pa.from_numpy_dtype(dtype))
        convert = pa.csv.ConvertOptions(column_types=types, include_columns=["time_ns", *names], null_values=[""])
        index = 0
        for batch in pa.csv.open_csv(path, convert_options=convert):
            samples_CN = np.stack([column.to_numpy() for column in batch.columns[1:]])
            yield index, samples_CN, batch.column(0).to_numpy()
            index += batch.num_rows
