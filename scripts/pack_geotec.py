"""Pack the GeoTec phone + watch recordings (CSV) into small Parquet files with integer counts.

    python scripts/pack_geotec.py ../shared/data/geotec_phone_watch [demo/recordings/geotec_phone_watch]

One file a person and device; columns `recording` (dictionary), `time_ms` (int64, that device's own Unix clock),
six int16 channels, `label` (dictionary). The schema's metadata hold what `collectors.sources` reads: kind, rate_hz,
channels, units, sensitivity (counts per unit). Times, order and labels are kept as they are, jitter and all.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROOT: Final = Path(__file__).resolve().parents[1]
DEVICES: Final = {"sp": "phone", "sw": "watch"}
COLUMNS: Final = ("x_acc", "y_acc", "z_acc", "x_gyro", "y_gyro", "z_gyro")
CHANNELS: Final = ("acc_x", "acc_y", "acc_z", "gyro_x", "gyro_y", "gyro_z")
UNITS: Final = ("m/s2",) * 3 + ("rad/s",) * 3
# Counts per unit. Accelerometers step by 8 g / 2^15 and the watch's gyroscope by 0.07 degrees/s: those very grids are
# kept. The phone corrects its gyroscope's offset as it goes, which blurs the same step; a finer one is taken there.
ACC_8G: Final = 2**15 / (8 * 9.80665)
SENSITIVITY: Final = {
    "sp": (ACC_8G,) * 3 + (2000.0,) * 3,
    "sw": (ACC_8G,) * 3 + (180 / np.pi / 0.07,) * 3,
}
SENSOR_STEP: Final = (1 / ACC_8G,) * 3 + (0.07 * np.pi / 180,) * 3
CITATION: Final = (
    "M. Matey-Sanz, S. Casteleyn, C. Granell, Dataset of inertial measurements of smartphones and smartwatches for "
    "human activity recognition, Data in Brief, 2023, 109809; "
    "doi 10.1016/j.dib.2023.109809, data doi 10.5281/zenodo.8398688"
)
ORIGIN: Final = "github.com/GeoTecINIT/sp-sw-har-dataset @ 1408d85a512a53861de7bc4729dee283fff2ea9d"


def pack(source: Path, target: Path) -> np.ndarray:
    """Write one Parquet file a person and device; return the largest error a device and channel, shape (2, 6)."""
    target.mkdir(parents=True, exist_ok=True)
    worst_DC = np.zeros((len(DEVICES), len(CHANNELS)))
    people = sorted(p for p in source.iterdir() if p.is_dir())
    if not people:
        sys.exit(f"error: {source} has no folders s01, s02, ...")
    for person in people:
        for d, device in enumerate(DEVICES):
            table, error_C = pack_device(sorted(person.glob(f"*_{device}.csv")), device)
            worst_DC[d] = np.maximum(worst_DC[d], error_C)
            write(table, target / f"{person.name}_{DEVICES[device]}.parquet")
    return worst_DC


def pack_device(files: list[Path], device: str) -> tuple[pa.Table, np.ndarray]:
    """All recordings of one person and device as a table, and the largest quantisation error a channel (units)."""
    recordings, times, labels, counts = [], [], [], []
    error_C = np.zeros(len(CHANNELS))
    for file in files:
        with file.open(newline="", encoding="utf-8") as f:
            rows = list(csv.DictReader(f))
        x_NC = np.array([[float(row[c]) for c in COLUMNS] for row in rows])
        counts_NC = np.round(x_NC * SENSITIVITY[device])
        if np.abs(counts_NC).max() >= 2**15 - 1:
            sys.exit(f"error: {file}: a value does not fit int16 at this sensitivity")
        error_C = np.maximum(error_C, np.abs(counts_NC / SENSITIVITY[device] - x_NC).max(axis=0))
        recordings += [file.stem.removesuffix(f"_{device}")] * len(rows)
        times += [int(row["timestamp"]) for row in rows]
        labels += [row["label"] for row in rows]
        counts.append(counts_NC.astype(np.int16))
    columns = {
        "recording": pa.array(recordings).dictionary_encode(),
        "time_ms": pa.array(times, pa.int64()),
        **dict(zip(CHANNELS, np.concatenate(counts).T, strict=True)),
        "label": pa.array(labels).dictionary_encode(),
    }
    metadata = {
        "kind": "imu",
        "modality": f"{DEVICES[device]}_imu",
        "rate_hz": "100",
        "channels": json.dumps(CHANNELS),
        "units": json.dumps(UNITS),
        "sensitivity": json.dumps(SENSITIVITY[device]),
        "licence": "CC BY 4.0",
        "origin": ORIGIN,
        "citation": CITATION,
        "changes": "physical values rounded to int16 counts (value = count / sensitivity); CSV to Parquet",
    }
    return pa.table(columns).replace_schema_metadata(metadata), error_C


def write(table: pa.Table, path: Path) -> None:
    encodings = {"time_ms": "DELTA_BINARY_PACKED", **dict.fromkeys(CHANNELS, "BYTE_STREAM_SPLIT")}
    pq.write_table(
        table,
        path,
        compression="zstd",
        compression_level=19,
        use_dictionary=["recording", "label"],
        column_encoding=encodings,
        write_statistics=False,
    )


def attribution(worst_DC: np.ndarray) -> str:
    lines = [
        "# GeoTec smartphone + smartwatch recordings (excerpt)",
        "",
        f"Source: {CITATION}.",
        f"Origin: {ORIGIN}, folder DATA.",
        "Licence: Creative Commons Attribution 4.0 International (CC BY 4.0),",
        "https://creativecommons.org/licenses/by/4.0/",
        "",
        "Changes: subjects s01 to s17 only; CSV converted to Parquet by `scripts/pack_geotec.py`, one file a person",
        "and device; physical values rounded to int16 counts (value = count / sensitivity, see the metadata).",
        "Times, order and labels are as they were. The authors endorse neither the changes nor this project.",
        "",
        "Largest rounding error, and the sensor's own step, a channel:",
        "",
        "| device | " + " | ".join(f"{c} ({u})" for c, u in zip(CHANNELS, UNITS, strict=True)) + " |",
        "|---" * 7 + "|",
        *(
            f"| {name} | " + " | ".join(f"{e:.6f}" for e in row) + " |"
            for name, row in zip(DEVICES.values(), worst_DC, strict=True)
        ),
        "| sensor's step | " + " | ".join(f"{s:.6f}" for s in SENSOR_STEP) + " |",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path, nargs="?", default=ROOT / "demo" / "recordings" / "geotec_phone_watch")
    arguments = parser.parse_args()
    worst_DC = pack(arguments.source, arguments.target)
    (arguments.target / "ATTRIBUTION.md").write_text(attribution(worst_DC), encoding="utf-8")
    size = sum(f.stat().st_size for f in arguments.target.glob("*.parquet"))
    print(f"{arguments.target}: {size / 1e6:.2f} MB")
    print(attribution(worst_DC).split("\n\n")[-1])
    if not np.all(worst_DC < SENSOR_STEP):
        sys.exit("error: rounding is coarser than the sensor")


if __name__ == "__main__":
    main()
