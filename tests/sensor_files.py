"""Small made files of every format that recordings come in; T0 is the time that they tell."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

T0_S = 1_647_601_227  # 2022-03-18 11:00:27 UTC
T0_NS = T0_S * 10**9


def write_zip(path: Path, members: dict[str, bytes | str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for name, data in members.items():
            z.writestr(name, data)
    return path


def forth_text(times_ms: Iterable[float]) -> str:
    """Channel c of sample i is i + c / 10."""
    return "".join(f"3,{','.join(str(i + c / 10) for c in range(9))},{t},1\n" for i, t in enumerate(times_ms))


def mobifall_text(times_ns: Iterable[int], wall: str = "18/03/2022 11:00:27") -> str:
    rows = "".join(f"{t}, {i}, {i + 0.1}, {i + 0.2}\n" for i, t in enumerate(times_ns))
    return f"#Acceleration\r\n#timestamp(ns),x,y,z(m/s^2)\r\n#Datetime: {wall}\r\n#####\r\n\r\n@DATA\r\n{rows}"


def mobifall_zip(path: Path) -> Path:
    gyro = mobifall_text(5_000_000_000 + k * 5_000_000 for k in range(100))
    acc = mobifall_text(5_095_000_000 + k * 11_000_000 for k in range(50))
    return write_zip(path, {"sub2/ADL/WAL/WAL_gyro_2_1.txt": gyro, "sub2/ADL/WAL/WAL_acc_2_1.txt": acc})


def metamotion_text(times_ms: Iterable[int], unit: str = "g") -> str:
    header = f"epoch (ms),time (01:00),elapsed (s),x-axis ({unit}),y-axis ({unit}),z-axis ({unit})\n"
    return header + "".join(f"{t},2022-03-18T12:00:27,0.0,{i},{i + 0.1},{i + 0.2}\n" for i, t in enumerate(times_ms))


def metamotion_zip(path: Path) -> Path:
    acc = metamotion_text(T0_S * 1000 + 80 * k for k in range(50))
    gyro = metamotion_text((T0_S * 1000 + 40 * k for k in range(100)), "deg/s")
    start = "A-squat-heavy_MetaWear_2022-03-18T12.00.27.000_C42732BE255C"
    return write_zip(
        path,
        {f"{start}_Accelerometer_12.500Hz_1.4.4.csv": acc, f"{start}_Gyroscope_25.000Hz_1.4.4.csv": gyro},
    )


def us_tmd_text() -> str:
    rows = ["2,android.sensor.accelerometer,1,2,3", "63,android.sensor.gyroscope,4,5,6"]
    rows += [f"{200 * k},android.sensor.accelerometer,{k},{k + 0.1},{k + 0.2}" for k in range(1, 50)]
    rows += ["-325,sound,-Infinity", "-10325,sound,41.5"]
    return "\n".join(rows) + "\n"


def sac_bytes(samples: Iterable[float], *, order: str = "<", rate_hz: float = 250.0, begin_s: float = 0.0) -> bytes:
    values = np.array(list(samples), dtype=f"{order}f4")
    floats, integers = [-12345.0] * 70, [-12345] * 40
    floats[0], floats[5] = 1 / rate_hz, begin_s
    when = datetime.fromtimestamp(T0_S, UTC)
    integers[:6] = [when.year, when.timetuple().tm_yday, when.hour, when.minute, when.second, 500]
    integers[6], integers[9], integers[15], integers[35] = 6, len(values), 1, 1
    words = [b"-12345  "] * 24
    words[0], words[3], words[20], words[21] = b"EB0002  ", b"-12345  ", b"EHZ     ", b"XX      "
    return struct.pack(f"{order}70f40i", *floats, *integers) + b"".join(words) + values.tobytes()


def write_flac(path: Path, n_samples: int, rate_hz: int = 8000) -> Path:
    """One channel, 16 bits; sample i is i modulo 1000."""
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(path, (np.arange(n_samples) % 1000).astype(np.int16), rate_hz, subtype="PCM_16")
    return path


def miniseed_bytes(
    start_ns: int, samples: Iterable[int], *, channel: str = "EHZ", rate_hz: float = 100.0, sequence: int = 1
) -> bytes:
    """Records of 512 bytes, Steim2, of AM.R1234.00."""
    obspy = pytest.importorskip("obspy")
    values = np.array(list(samples), dtype=np.int32)
    trace = obspy.Trace(values, {"network": "AM", "station": "R1234", "location": "00", "channel": channel})
    trace.stats.sampling_rate, trace.stats.starttime = rate_hz, obspy.UTCDateTime(ns=start_ns)
    buffer = io.BytesIO()
    trace.write(buffer, format="MSEED", reclen=512, encoding="STEIM2", sequence_number=sequence)
    return buffer.getvalue()


def write_miniseed(path: Path, segments: Iterable[tuple[float, Iterable[int]]], **options: Any) -> Path:
    """Segments: seconds after T0, samples. They stand in the file in the order given."""
    path.write_bytes(b"".join(miniseed_bytes(T0_NS + round(s * 1e9), x, **options) for s, x in segments))
    return path
