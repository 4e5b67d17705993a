"""One commented `[[nodes.sources]]` table a kind of source: what `node init` writes and `node devices` shows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from infomae_stream.errors import ConfigError

Value = str | int | float
COMMENTS_AT: Final = 33  # the column


@dataclass(frozen=True, slots=True)
class Question:
    """key: as it is given to `--source`. The default's type is the value's; "" has to be answered when `required`."""

    key: str
    text: str
    default: Value = ""
    required: bool = False


@dataclass(frozen=True, slots=True)
class SourceLines:
    """questions: what a table cannot be written without. write: the lines below `type`, from checked answers."""

    questions: tuple[Question, ...]
    write: Callable[[Mapping[str, Any]], list[str]]


def source_lines(kind: str, given: Mapping[str, Value]) -> list[str]:
    """The table of a source of `kind`. Raises ConfigError for an unknown kind or key, a missing or a wrong value."""
    known = _known(kind)
    unknown = sorted(set(given) - {q.key for q in known.questions})
    if unknown:
        keys = ", ".join(q.key for q in known.questions)
        raise ConfigError(f"{unknown[0]!r} is no option here", where=f"source {kind}", fix=f"known: {keys}")
    answers = {q.key: _answer(kind, q, given.get(q.key, q.default)) for q in known.questions}
    return ["[[nodes.sources]]", f"type = {quoted(kind)}", *known.write(answers)]


def questions(kind: str) -> tuple[Question, ...]:
    """What to ask for a source of `kind`. Raises ConfigError for an unknown one."""
    return _known(kind).questions


def quoted(text: str) -> str:
    """`text` as a TOML string: JSON's escapes are among TOML's."""
    return json.dumps(text, ensure_ascii=False)


def _known(kind: str) -> SourceLines:
    if kind not in SOURCE_LINES:
        raise ConfigError(f"{kind!r} is no source", where="--source", fix=f"known: {', '.join(SOURCE_LINES)}")
    return SOURCE_LINES[kind]


def _answer(kind: str, question: Question, value: Value) -> Value:
    where = f"source {kind}"
    if question.required and value == "":
        fix = f"give it, as in --source '{kind} {question.key}=...'"
        raise ConfigError(f"{question.key} is missing: {question.text}", where=where, fix=fix)
    try:
        if isinstance(question.default, int):
            return int(value, 0) if isinstance(value, str) else int(value)  # 0x68 is how addresses are written
        return type(question.default)(value)
    except ValueError as e:
        raise ConfigError(f"{question.key}: a number is wanted, not {value!r}", where=where) from e


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _texts(text: str) -> str:
    return "[" + ", ".join(quoted(part) for part in _listed(text)) + "]"


def commented(setting: str, comment: str) -> str:
    """A line of TOML and a word on it."""
    return f"{setting:<{COMMENTS_AT}} # {comment}"


def _channel_tables(answers: Mapping[str, Any]) -> list[str]:
    lines = []
    for code in _listed(answers["channels"]):
        # SEED's instrument codes: D is a pressure sensor, N an accelerometer.
        kind, unit = {"D": ("acoustic", "Pa"), "N": ("accelerometer", "m/s2")}.get(code[1:2], ("seismic", "m/s"))
        lines += [
            commented(f"[nodes.sources.channels.{code}]", "one stream a channel"),
            f"kind = {quoted(kind)}",
            f"rate_hz = {answers['rate_hz']:g}",
            commented("# sensitivity = 1.0", "counts per unit, from the station's response file; left out: raw counts"),
            f"# unit = {quoted(unit)}",
        ]
    return lines


def _raspberry_shake(a: Mapping[str, Any]) -> list[str]:
    senders = _listed(a["senders"])
    return [
        commented(f"host = {quoted('0.0.0.0' if senders else '127.0.0.1')}", "where to listen"),
        commented(f"port = {a['port']}", "set the same on the Shake: Settings, UDP data"),
        commented(f"senders = {_texts(a['senders'])}", "addresses that may send; empty: this machine only"),
        commented(f"station = {quoted(a['station'])}", "a datagram names no station: it is named here"),
        *_channel_tables(a),
    ]


def _seedlink(a: Mapping[str, Any]) -> list[str]:
    return [
        f"host = {quoted(a['host'])}",
        "port = 18000",
        f"station = {quoted(a['station'])}",
        *_channel_tables(a),
    ]


def _alsa(a: Mapping[str, Any]) -> list[str]:
    return [
        commented(
            f"device = {quoted(a['device'])}", 'a part of the name that only one device has; "": the system\'s default'
        ),
        f"stream = {quoted(a['stream'])}",
        f"rate_hz = {a['rate_hz']:g}",
        f"channels = {a['channels']}",
        commented('dtype = "int16"', '"int32" for 24-bit devices'),
    ]


def _iio(a: Mapping[str, Any]) -> list[str]:
    return [
        commented(f"device = {quoted(a['device'])}", "as in /sys/bus/iio/devices/*/name"),
        f"stream = {quoted(a['stream'])}",
        commented(f"rate_hz = {a['rate_hz']:g}", "one that the driver has"),
    ]


def _i2c(a: Mapping[str, Any]) -> list[str]:
    return [
        commented(f"chip = {quoted(a['chip'])}", "or icm20948"),
        f"bus = {a['bus']}",
        commented(f"address = {a['address']:#04x}", "0x69 where the pin AD0 is high"),
        f"stream = {quoted(a['stream'])}",
        f"rate_hz = {a['rate_hz']:g}",
    ]


def _mqtt(a: Mapping[str, Any]) -> list[str]:
    channels = _listed(a["channels"])
    return [
        f"kind = {quoted(a['kind'])}",
        f"rate_hz = {a['rate_hz']:g}",
        f"channels = {_texts(a['channels'])}",
        f"units = {_texts(','.join([a['unit']] * len(channels)))}",
        commented("[nodes.sources.broker]", "as [mqtt]; often this machine's own"),
        f"host = {quoted(a['host'])}",
        commented("[nodes.sources.topics]", "topic filter = stream; one publisher a stream"),
        f"{quoted(a['topic'])} = {quoted(a['stream'])}",
        commented("[nodes.sources.payload]", "form, fields, time: docs/sensors.md"),
        commented('form = "json"', '{"t": 1700000000.25, "s": [[0.1, 0.2, 9.8], ...]}'),
        'samples = "s"',
        commented('time = "t"', "of the first sample; left out: the arrival counts"),
    ]


def _csv(a: Mapping[str, Any]) -> list[str]:
    return [
        f"path = {quoted(a['path'])}",
        f"stream = {quoted(a['stream'])}",
        f"kind = {quoted(a['kind'])}",
        f"rate_hz = {a['rate_hz']:g}",
        "[nodes.sources.time]",
        commented(f"column = {quoted(a['time_column'])}", "a name in the header"),
        commented('unit = "s"', "s, ms, us, ns since 1970, iso, or a pattern like %d.%m.%Y %H:%M:%S"),
        commented("[[nodes.sources.columns]]", "one table a channel"),
        f"column = {quoted(a['column'])}",
        f"channel = {quoted(a['column'])}",
        f"unit = {quoted(a['unit'])}",
    ]


def _replay(a: Mapping[str, Any]) -> list[str]:
    return [
        commented(f"path = {quoted(a['path'])}", "a file, or a pattern like audio/*.wav; the suffix tells the format"),
        f"stream = {quoted(a['stream'])}",
        commented(f"speed = {a['speed']:g}", "1: in real time; 0: as fast as the outbox takes it"),
    ]


def _synthetic(a: Mapping[str, Any]) -> list[str]:
    return [commented(f"kinds = {_texts(a['kinds'])}", "a road that does not exist: for trials"), f"seed = {a['seed']}"]


_STATION: Final = Question("station", "the station's code, as on the Shake's page", "", required=True)
_CHANNELS: Final = (
    Question("channels", "channels, comma between them", "EHZ"),
    Question("rate_hz", "samples a second of a channel", 100.0),
)
_STREAM_IMU: Final = Question("stream", "a name for the stream", "imu")

SOURCE_LINES: Final[dict[str, SourceLines]] = {
    "alsa": SourceLines(
        (
            Question("device", "the sound device, or a part of its name (`node devices` lists them)", ""),
            Question("stream", "a name for the stream", "mic"),
            Question("rate_hz", "samples a second", 48_000.0),
            Question("channels", "channels", 1),
        ),
        _alsa,
    ),
    "csv": SourceLines(
        (
            Question("path", "the file, seen from node.toml", "", required=True),
            Question("stream", "a name for the stream", "csv"),
            Question("kind", "what it measured", "accelerometer"),
            Question("rate_hz", "rows a second", 100.0),
            Question("time_column", "the column that tells the time", "t"),
            Question("column", "the column with the samples", "x"),
            Question("unit", "its unit (UCUM)", "m/s2"),
        ),
        _csv,
    ),
    "i2c": SourceLines(
        (
            Question("chip", "mpu6050 or icm20948", "mpu6050"),
            Question("bus", "the bus's number", 1),
            Question("address", "the chip's address: 104 (0x68) or 105 (0x69)", 0x68),
            _STREAM_IMU,
            Question("rate_hz", "samples a second", 100.0),
        ),
        _i2c,
    ),
    "iio": SourceLines(
        (
            Question("device", "the driver's name (`node devices` lists them)", "", required=True),
            _STREAM_IMU,
            Question("rate_hz", "samples a second, one that the driver has", 100.0),
        ),
        _iio,
    ),
    "mqtt": SourceLines(
        (
            Question("topic", "the topic that is published to", "", required=True),
            Question("host", "the broker", "127.0.0.1"),
            Question("stream", "a name for the stream", "sensor"),
            Question("kind", "what it measures", "accelerometer"),
            Question("rate_hz", "samples a second", 50.0),
            Question("channels", "channels, comma between them", "x,y,z"),
            Question("unit", "their unit (UCUM)", "m/s2"),
        ),
        _mqtt,
    ),
    "raspberry_shake": SourceLines(
        (
            _STATION,
            Question("senders", "the Shake's address; empty when the node runs on the Shake itself", ""),
            Question("port", "the UDP port", 8888),
            *_CHANNELS,
        ),
        _raspberry_shake,
    ),
    "replay": SourceLines(
        (
            Question("path", "the recording, seen from node.toml", "", required=True),
            Question("stream", "a name for the stream", "recording"),
            Question("speed", "times real time; 0 is as fast as it goes", 1.0),
        ),
        _replay,
    ),
    "seedlink": SourceLines((_STATION, Question("host", "the server's address", "127.0.0.1"), *_CHANNELS), _seedlink),
    "synthetic": SourceLines(
        (Question("kinds", "of seismic, acoustic, imu", "seismic,acoustic"), Question("seed", "of the scene", 0)),
        _synthetic,
    ),
}
