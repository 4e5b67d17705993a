"""Valid configuration, labels and topics, ways to break them, and plain judges of what is left."""

from __future__ import annotations

import csv
import io
import math
import random
import re
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from aligner.labels import COLUMNS, Purpose, read_labels_file
from infomae_stream.node_config import NodeConfig

CLASSES: Final = ("walking", "seated")
ID: Final = re.compile(r"[a-z0-9_-]{1,48}")
CONFIG: Final = """\
state_dir = "state"
[mqtt]
host = "hub.local"
port = 1884
protocol = "auto"
keepalive_s = 30
[metrics]
collect_port = 9101
[outbox]
commit_interval_s = 1.0
keep_s = 60.0
max_bytes = 2000000000
[uplink]
resend_after_s = 10.0
[detect]
enabled = true
max_lag_s = 20.0
[[nodes]]
site = "s01"
node = "s01-phone"
clock = { source = "declared", offset_ms = 0.5, uncertainty_ms = 1.0, synchronised = true }
sources = [{ type = "replay", path = "x.csv" }]
"""
LABELS: Final = (
    ",".join(COLUMNS)
    + "\ns01,s01-phone,1600000000000000000,1600000001000000000,walking\n"
    + "s01,s01-phone,2022-07-11T10:06:18.25Z,2022-07-11T10:06:19Z,seated\n"
    + "s02,s02-phone,100,200,walking\n"
)


def break_topic(rng: random.Random, valid: bytes) -> bytes:
    parts = valid.decode().split("/")
    kind = rng.randrange(5)
    at = rng.randrange(len(parts))
    if kind == 0:
        parts[at] = rng.choice(["", "+", "#", "..", "A", "é", " ", "x" * 49, "s\n", "$SYS", "chunk", "ack", "٣"])
    elif kind == 1:
        del parts[at]
    elif kind == 2:
        parts.insert(at, rng.choice(["", "x", "chunk"]))
    elif kind == 3:
        parts += ["x"] * rng.choice([1, 50, 5000])
    else:
        rng.shuffle(parts)
    return "/".join(parts).encode()


def break_config(rng: random.Random, valid: bytes) -> bytes:
    """Change the value of a line to one of another type or out of range, or damage the file's structure."""
    lines = valid.decode().splitlines()
    settings = [i for i, line in enumerate(lines) if " = " in line]
    i = rng.choice(settings)
    key, _, value = lines[i].partition(" = ")
    kind = rng.randrange(7)
    if kind <= 2:
        odd = ["nan", "inf", "-inf", "-1", "0", "1e400", "99999999999999999999", "70000", "true", '""', "[]", "{}",
               '"x"', '"a/b"', "[[[]]]", "1979-05-27", "0x7fffffffffffffffffff", '"\\u0000"', "1.5", '"1"']  # fmt: skip
        lines[i] = f"{key} = {rng.choice(odd)}"
    elif kind == 3:
        lines.insert(i, lines[i])
    elif kind == 4:
        lines[i] = f"{key}{rng.choice(['x', '_', '.y'])} = {value}"
    elif kind == 5:
        lines[i] = rng.choice(
            ["[", "[[", "=", "x = " + "[" * 5000, "x = " + "{a=" * 3000, "a." * 300 + "b = 1", "[mqtt]"]
        )
    else:
        del lines[i]
    return ("\n".join(lines) + "\n").encode()


def config_says(config: NodeConfig) -> dict[str, Any]:
    """Every setting that CONFIG names, as it was understood."""
    node = config.nodes[0]
    return {
        "state_dir": config.state_dir,
        **{name: getattr(config.mqtt, name) for name in ("host", "port", "protocol", "keepalive_s")},
        "collect_port": config.metrics.collect_port,
        **{name: getattr(config.outbox, name) for name in ("commit_interval_s", "keep_s", "max_bytes")},
        "resend_after_s": config.uplink.resend_after_s,
        **{name: getattr(config.detect, name) for name in ("enabled", "max_lag_s")},
        "site": node.site,
        "node": node.node,
        "clock": tuple(getattr(node.clock, n) for n in ("source", "offset_ms", "uncertainty_ms", "synchronised")),
        "sources": node.sources,
    }


_TABLES: Final[dict[str, dict[str, Any]]] = {
    "mqtt": {"host": "127.0.0.1", "port": 1883, "protocol": "auto", "keepalive_s": 30},
    "metrics": {"collect_port": 9101},
    "outbox": {"commit_interval_s": 1.0, "keep_s": 60.0, "max_bytes": 2_000_000_000},
    "uplink": {"resend_after_s": 10.0},
    "detect": {"enabled": True, "max_lag_s": 20.0},
}
_RANGES: Final = {
    "port": (0, 65535), "collect_port": (0, 65535), "keepalive_s": (5, math.inf), "commit_interval_s": (1e-300, 60),
    "keep_s": (0, math.inf), "max_bytes": (1_000_000, math.inf), "resend_after_s": (1e-300, math.inf),
    "max_lag_s": (1e-300, math.inf), "offset_ms": (-math.inf, math.inf), "uncertainty_ms": (-math.inf, math.inf),
}  # fmt: skip


def judge_config(payload: bytes) -> dict[str, Any] | None:
    """What CONFIG's settings say after some damage; None when a reader has to refuse. Knows CONFIG's keys only."""
    try:
        raw = tomllib.loads(payload.decode("utf-8"))
        found: dict[str, Any] = {"state_dir": _value("state_dir", raw.pop("state_dir", "state"), "state")}
        nodes = raw.pop("nodes")
        for name, defaults in _TABLES.items():
            table = raw.pop(name, {})
            if set(table) - set(defaults):
                return None
            for key, default in defaults.items():
                found[key] = _value(key, table.get(key, default), default)
        (node,) = nodes
        clock = {"source": "system", "offset_ms": 0.0, "uncertainty_ms": 1.0, "synchronised": True}
        if raw or set(node) - {"site", "node", "clock", "sources"} or set(node.get("clock", {})) - set(clock):
            return None
        told = {key: _value(key, node.get("clock", {}).get(key, default), default) for key, default in clock.items()}
        sources = node["sources"]
        if type(sources) is not list or not sources or not all(type(source) is dict for source in sources):
            return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    ids = [node.get("site"), node.get("node")]
    if not all(type(i) is str and ID.fullmatch(i) for i in ids):
        return None
    if found["protocol"] not in ("auto", "5", "3.1.1") or told["source"] not in ("system", "chrony", "declared"):
        return None
    return {**found, "site": ids[0], "node": ids[1], "clock": tuple(told.values()), "sources": sources}


def _value(key: str, value: Any, default: Any) -> Any:
    """`value` as a setting of the default's type. Raises ValueError for any other, and outside of the range."""
    if type(default) is float and type(value) is int:
        value = float(value) if abs(value) < 2**1000 else math.inf
    if type(default) is int and type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not type(default):
        raise ValueError(key)
    if key in _RANGES:
        least, most = _RANGES[key]
        if not math.isfinite(value) or not least <= value <= most:
            raise ValueError(key)
    return value


def break_labels(rng: random.Random, valid: bytes) -> bytes:
    rows = [line.split(",") for line in valid.decode().splitlines()]
    kind = rng.randrange(6)
    row = rows[rng.randrange(len(rows))]
    at = rng.randrange(len(row))
    if kind <= 2:
        row[at] = rng.choice(
            ["", "-1", "nan", "1e9", "x" * 200_000, "9" * 40, "2022-13-01", "2022-07-11T25:00", "0001-01-01",
             "9999-12-31T23:59:59+00:00", "walkin", "A", '"', '"a"b', "\u0000", "٣", "0x10", "1600000000500000000",
             "2022-07-11T10:06:18.123456789123Z", "\u2028", "+5", "1_000"]
        )  # fmt: skip
    elif kind == 3:
        rows.append(list(row))
    elif kind == 4:
        del row[at]
    else:
        row.insert(at, "x")
    return "\n".join(",".join(r) for r in rows).encode() + rng.choice([b"", b"\n", b"\xff", b"\r\n"])


def labels_say(path: Path) -> list[tuple[Any, ...]]:
    return [
        (i.site, i.node, i.start_ns, i.end_ns, i.label, i.purpose)
        for i in read_labels_file(path, CLASSES, Purpose.train)
    ]


def judge_labels(payload: bytes) -> list[tuple[Any, ...]] | None:
    """Reads the table with `csv` as the program does; everything that a row says is judged here on its own."""
    try:
        text = payload.decode("utf-8-sig")
        head, *rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except (ValueError, csv.Error):
        return None
    if sorted(head) != sorted(COLUMNS):
        return None
    found: list[tuple[Any, ...]] = []
    ends: dict[tuple[str, str], int] = {}
    for row in rows:
        if len(row) != len(head):
            return None
        told = {name: value.strip() for name, value in zip(head, row, strict=True)}
        start, end = _moment(told["start_ns"]), _moment(told["end_ns"])
        place = told["site"], told["node"]
        if start is None or end is None or not 0 <= start < end < 2**62 or told["label"] not in CLASSES:
            return None
        if not all(ID.fullmatch(name) for name in place) or start < ends.get(place, 0):
            return None
        ends[place] = end
        found.append((*place, start, end, told["label"], "train"))
    return found


def _moment(text: str) -> int | None:
    if re.fullmatch(r"[0-9]{1,19}", text):
        return int(text)
    if not text.isascii():
        return None
    match = re.fullmatch(r"([^.,]*)(?:[.,]([0-9]{1,9}))?((?:Z|[+-][0-9:]+)?)", text)
    try:
        moment = datetime.fromisoformat(match[1] + match[3]) if match else None
    except ValueError:
        return None
    if match is None or moment is None:
        return None
    try:
        since = moment.replace(tzinfo=moment.tzinfo or UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    except OverflowError:
        return None
    return (since.days * 86_400 + since.seconds) * 10**9 + int((match[2] or "0").ljust(9, "0"))
