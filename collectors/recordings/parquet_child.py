"""`python -m collectors.recordings.parquet_child`: decodes Parquet files for a process that must stay small.

Each line on stdin is a JSON object {"path", "folder"}: samples.npy and times.npy are left in the folder, and a line
with the description and the recordings' row ranges, or with "error", is answered. Ends with stdin, or after IDLE_S.

Two makes of file are known:
- an excerpt: columns `recording`, `time_ms` or `time_ns`, one a channel; the description in the schema's metadata;
- rows of the lake's `chunks` table, all of one stream: one recording, in the order of time, duplicates left out.
"""

from __future__ import annotations

import itertools
import json
import select
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

LAKE_COLUMNS: Final = (
    *("site", "node", "stream", "epoch", "seq", "start_ns", "modality", "rate_hz"),
    *("channels", "units", "sensitivity", "dtype", "samples", "times"),
)


IDLE_S: Final = 5.0


def main() -> None:
    while select.select([sys.stdin], [], [], IDLE_S)[0]:
        line = sys.stdin.readline()
        if not line:
            return
        print(json.dumps(answer(**json.loads(line))), flush=True)


def answer(path: str, folder: str) -> dict[str, Any]:
    """What is written to stdout; the arrays lie in `folder` unless there is an "error"."""
    try:
        parquet = pq.ParquetFile(path)
        read = _read_lake_rows if "samples" in parquet.schema_arrow.names else _read_excerpt
        description, recordings, times_N, samples_NC = read(parquet)
        np.save(Path(folder) / "times.npy", times_N, allow_pickle=False)
        np.save(Path(folder) / "samples.npy", samples_NC, allow_pickle=False)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as e:
        return {"error": f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"}
    return {"description": description, "recordings": recordings}


def _read_excerpt(
    parquet: pq.ParquetFile,
) -> tuple[dict[str, Any], list[tuple[str, int, int]], NDArray[np.int64], NDArray[Any]]:
    metadata = {key.decode(): value.decode() for key, value in (parquet.schema_arrow.metadata or {}).items()}
    missing = {"channels", "units", "sensitivity", "rate_hz"} - metadata.keys()
    if missing:
        raise ValueError(f"the schema's metadata lack {', '.join(sorted(missing))}")
    channels = json.loads(metadata["channels"])
    time_column = "time_ms" if "time_ms" in parquet.schema_arrow.names else "time_ns"
    table = parquet.read(columns=["recording", time_column, *channels])
    if any(table[name].null_count for name in table.column_names):
        raise ValueError("there are nulls among times or samples")
    times_N = _numbers(table[time_column]).astype(np.int64) * (1_000_000 if time_column == "time_ms" else 1)
    samples_NC = np.stack([_numbers(table[c]) for c in channels], axis=1)
    coded = table["recording"].cast(pa.dictionary(pa.int32(), pa.string())).unify_dictionaries().combine_chunks()
    code_N, names = np.from_dlpack(coded.indices), coded.dictionary.to_pylist()
    starts = [0, *(np.flatnonzero(code_N[1:] != code_N[:-1]) + 1).tolist(), len(code_N)]
    if len(code_N) == 0 or len({int(code_N[i]) for i in starts[:-1]}) != len(starts) - 1:
        raise ValueError("there are no rows, or the rows of a recording do not stand together")
    recordings = [(names[code_N[a]], a, b) for a, b in itertools.pairwise(starts)]
    description = {
        "channels": channels,
        "units": json.loads(metadata["units"]),
        "sensitivity": json.loads(metadata["sensitivity"]),
        "rate_hz": float(metadata["rate_hz"]),
        "kind": metadata.get("kind", ""),
        "modality": metadata.get("modality", ""),
    }
    return description, recordings, times_N, samples_NC


def _numbers(column: pa.ChunkedArray) -> NDArray[Any]:
    # Not column.to_numpy(): that imports pandas where there is one, which takes longer than all the rest.
    return np.from_dlpack(column.combine_chunks())


def _read_lake_rows(
    parquet: pq.ParquetFile,
) -> tuple[dict[str, Any], list[tuple[str, int, int]], NDArray[np.int64], NDArray[Any]]:
    wanted = [*LAKE_COLUMNS, *(["kind"] if "kind" in parquet.schema_arrow.names else [])]
    rows = {(r["epoch"], r["seq"]): r for r in parquet.read(columns=wanted).to_pylist()}
    ordered = sorted(rows.values(), key=lambda r: (r["start_ns"], r["seq"]))
    described = {_description(row) for row in ordered}
    streams = {(r["site"], r["node"], r["stream"]) for r in ordered}
    if len(described) != 1 or len(streams) != 1:
        raise ValueError(f"{len(streams)} streams of {len(described)} makes in one file; export one stream a file")
    samples, times = [], []
    for row in ordered:
        dtype = np.dtype(row["dtype"]).newbyteorder("<")
        x_NC = np.frombuffer(row["samples"], dtype=dtype).reshape(len(row["channels"]), -1).T
        samples.append(x_NC.astype(dtype.newbyteorder("=")))
        if row["times"] is None:
            step_ns = 1e9 / row["rate_hz"]
            times.append(row["start_ns"] + np.round(np.arange(len(x_NC)) * step_ns).astype(np.int64))
        else:
            times.append(np.frombuffer(row["times"], dtype="<i8").astype(np.int64))
    times_N = np.concatenate(times)
    ((site, node, stream),) = streams
    recordings = [(f"{site}_{node}_{stream}", 0, len(times_N))]
    return json.loads(described.pop()), recordings, times_N, np.concatenate(samples)


def _description(row: dict[str, Any]) -> str:
    names = ("channels", "units", "sensitivity", "rate_hz", "modality")
    return json.dumps({**{name: row[name] for name in names}, "kind": row.get("kind") or ""}, sort_keys=True)


if __name__ == "__main__":
    main()
