"""Small recordings in every format that the replay source reads."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import wave
from pathlib import Path

import numpy as np

T0_MS = 1_657_533_977_813
CHANNELS = ("acc_x", "acc_y", "acc_z", "gyro_x", "gyro_y", "gyro_z")


def write_excerpt(path: Path, recordings: dict[str, list[int]]) -> Path:
    """An excerpt in Parquet: recording name -> times in ms after T0; channel c of sample i counts 10 i + c.

    Written by a process of its own, so that the test's process stays free of pyarrow.
    """
    program = """
        import json, sys
        import pyarrow as pa, pyarrow.parquet as pq
        path, recordings, channels, t0 = json.loads(sys.argv[1])
        names = [name for name, times in recordings.items() for _ in times]
        times = [t0 + t for ts in recordings.values() for t in ts]
        columns = {"recording": pa.array(names).dictionary_encode(), "time_ms": pa.array(times, pa.int64())}
        for c, channel in enumerate(channels):
            columns[channel] = pa.array([(10 * i + c) % 30000 for i in range(len(times))], pa.int16())
        columns["label"] = pa.array(["WALKING"] * len(times)).dictionary_encode()
        metadata = {"kind": "imu", "modality": "phone_imu", "rate_hz": "100", "channels": json.dumps(channels),
                    "units": json.dumps(["m/s2"] * 3 + ["rad/s"] * 3), "sensitivity": json.dumps([400.0] * 6)}
        pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)
    """
    arguments = json.dumps([str(path), recordings, CHANNELS, T0_MS])
    subprocess.run([sys.executable, "-c", textwrap.dedent(program), arguments], check=True)
    return path


def write_csv(path: Path, times_ms: list[int]) -> Path:
    """GeoTec's CSV; channel c of sample i is i + c / 10."""
    lines = ["x_acc,y_acc,z_acc,x_gyro,y_gyro,z_gyro,timestamp,label"]
    for i, t in enumerate(times_ms):
        lines.append(",".join(str(i + c / 10) for c in range(6)) + f",{T0_MS + t},SEATED")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_wav(path: Path, n_samples: int, rate_hz: int = 8000) -> Path:
    """One channel, 16 bits; sample i is i modulo 1000."""
    with wave.open(str(path), "wb") as f:
        f.setnchannels(1)
        f.setsampwidth(2)
        f.setframerate(rate_hz)
        f.writeframes((np.arange(n_samples) % 1000).astype("<i2").tobytes())
    return path
