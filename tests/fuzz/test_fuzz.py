"""A short campaign over every reader, what earlier ones found, and that the campaign itself can fail."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cbor2
import pytest

from aligner.labels import Purpose, read_labels_file
from collectors.hub.received import claimed_identity
from infomae_stream.config import load_config
from infomae_stream.errors import ConfigError, DataError, WireError
from infomae_stream.node_config import NodeConfig
from infomae_stream.wire import decode_ack, decode_chunk, decode_detection, encode_chunk, encode_detection
from tests.fuzz.campaign import Tally, run, try_input
from tests.fuzz.coverage_guided import missing, run_guided
from tests.fuzz.mutations import cbor_bombs, json_bombs
from tests.fuzz.targets import TARGETS, Target
from tests.hub_records import make_chunk, make_detection

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_nothing_bad_is_accepted_nothing_crashes_and_memory_is_bounded(target: Target) -> None:
    tally = run(target, random.Random(7), 120)
    assert tally.clean, tally.examples
    assert tally.over_strict == 0, tally.examples


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_what_is_valid_is_read_as_it_says(target: Target) -> None:
    rng = random.Random(3)
    tally = Tally()
    for _ in range(30):
        try_input(target, target.valid(rng), tally)
    assert tally.clean and tally.over_strict == 0, tally.examples
    assert (tally.harmless, tally.bad) == ((0, 30) if target.name == "claim" else (30, 0))  # a claim is no acceptance


def test_a_reader_that_takes_or_breaks_on_bad_input_is_found() -> None:
    """The campaign's own mutants: one accepts everything, one lets a foreign error out, one wastes memory."""
    chunk = TARGETS[0]

    def greedy(payload: bytes) -> None:
        bytes(40_000_000 + 16 * len(payload))
        raise WireError("no", reason="cbor")

    assert run(replace(chunk, says=lambda payload: {}), random.Random(1), 20).accepted == 20
    assert run(replace(chunk, says=lambda payload: payload.index(b"?")), random.Random(1), 20).crashed > 0
    assert run(replace(chunk, says=greedy), random.Random(1), 20).over_memory >= 20


@pytest.mark.skipif(bool(missing()), reason=missing())
@pytest.mark.parametrize("target", [t for t in TARGETS if t.name in ("ack", "stored-chunk")], ids=lambda t: t.name)
def test_inputs_led_by_coverage_find_nothing(target: Target) -> None:
    tally = run_guided(target, 200, 7)
    assert tally.clean and tally.bad == 200, tally.examples


@pytest.mark.skipif(bool(missing()), reason=missing())
def test_a_process_that_ends_early_is_a_find() -> None:
    tally = run_guided(replace(TARGETS[0], name="no such target"), 10, 1)
    assert tally.crashed == 1 and "exit status" in tally.examples[-1]


# -- what campaigns found, each as it was first seen ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("v",), True),
        (("v",), 1.0),
        (("crc32",), None),
        (("clock", "synchronised"), "no"),
        (("clock", "source"), 7),
        (("spec", "rate_hz"), "100"),
        (("spec", "rate_hz"), True),
        (("spec", "channels"), "abcdef"),
        (("spec", "units"), {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5, "f": 6}),
        (("spec", "units"), [cbor2.CBORTag(85, "x"), "b", "c", "d", "e", "f"]),
        (("spec", "seed_id"), None),
        (("spec", "sensitivity"), ["1"] * 6),
        (("spec", "sensitivity"), [10**400] * 6),
        (("spec", "kind"), cbor2.CBORTag(35, "imu")),
        (("spec", "rate_hz"), cbor2.CBORTag(4, [0, 100])),
        (("seq",), cbor2.CBORTag(2, b"\x07")),
        (("epoch",), cbor2.CBORTag(28, "e1")),
    ],
)
def test_a_chunk_is_taken_at_its_word(path: tuple[str, ...], value: object) -> None:
    message = cbor2.loads(encode_chunk(make_chunk(7)))
    part = message
    for name in path[:-1]:
        part = part[name]
    if value is None:
        value = float(message["crc32"]) if path == ("crc32",) else None
    part[path[-1]] = value
    with pytest.raises(WireError) as e:
        decode_chunk(cbor2.dumps(message))
    assert e.value.reason in ("schema", "cbor", "crc")


@pytest.mark.parametrize(
    "payload",
    [
        b'{"v": 1, "epoch": "a", "epoch": "e1", "durable": [], "refused": []}',
        b'{"v": true, "epoch": "e1", "durable": [], "refused": []}',
        b'{"v": 1, "epoch": "e1", "durable": {}, "refused": []}',
        b'{"v": 1, "epoch": "e1", "durable": [], "refused": "", "x": NaN}',
        b'{"v": 1, "epoch": "e1", "durable": [[1, 2, 3]], "refused": []}',
        b'{"v": 1, "epoch": "e1", "durable": [], "refused": ["abc"]}',
        b'{"v": 1, "epoch": "e1", "durable": [[true, 2]], "refused": []}',
        b'{"v": 1, "epoch": "e1", "durable": [[1, 2]], "refused": [], "sums": [true]}',
        b'{"v": 1, "epoch": "e1", "durable": [[1, 2]], "refused": [], "sums": [4294967296]}',
        b'{"v": 1, "epoch": "e1", "durable": [], "refused": [], "sums": [1]}',
    ],
)
def test_an_ack_is_taken_at_its_word(payload: bytes) -> None:
    with pytest.raises(WireError):
        decode_ack(payload)


@pytest.mark.parametrize(
    "change",
    [{"scores": {"walking": "1"}}, {"scores": {"walking": True}}, {"modalities": "ab"}, {"site": "S/1"}, {"seq": -1}],
)
def test_a_detection_is_taken_at_its_word(change: dict[str, object]) -> None:
    message = json.loads(encode_detection(make_detection(3))) | change
    with pytest.raises(WireError):
        decode_detection(json.dumps(message).encode())


@pytest.mark.parametrize(
    "line", ["port = true", 'port = "1883"', "keepalive_s = nan", "x = " + "{a=" * 3000, "x = " + "[" * 5000]
)
def test_a_setting_of_another_type_is_a_mistake(tmp_path: Path, line: str) -> None:
    path = tmp_path / "node.toml"
    path.write_text(f'[mqtt]\n{line}\n[[nodes]]\nsite = "s"\nnode = "n"\nsources = [{{type = "replay"}}]\n')
    with pytest.raises(ConfigError):
        load_config(path, NodeConfig, {})


def test_digits_of_another_script_are_no_time(tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    path.write_text("site,node,start_ns,end_ns,label\ns01,a,\u0663,200,walking\n", encoding="utf-8")
    with pytest.raises(DataError, match="is not a time"):
        read_labels_file(path, ["walking"], Purpose.train)


def test_bombs_are_refused_in_little_memory() -> None:
    rng = random.Random(5)
    for name, bomb in (("chunk", cbor_bombs), ("gap", cbor_bombs), ("ack", json_bombs), ("detection", json_bombs)):
        target = next(t for t in TARGETS if t.name == name)
        assert run(replace(target, breakers=(lambda rng, _, bomb=bomb: bomb(rng),)), rng, 6).clean  # type: ignore[misc]


@pytest.mark.parametrize("tag", [0, 4, 28, 30, 35, 100, 260])
def test_a_tag_in_a_refused_message_does_not_hide_whose_it_is(tag: int) -> None:
    message = {"v": 1, "spec": cbor2.CBORTag(tag, "(a*)*" * 2000), "epoch": "e1", "seq": 7}
    assert claimed_identity(cbor2.dumps(message)) == ("e1", 7)


def test_a_refused_message_of_many_parts_is_not_read_for_its_identity() -> None:
    payload = b'{"epoch":"e1","seq":7,"x":[' + b"[]," * 1_300_000 + b"0]}"
    tracemalloc.start()
    try:
        assert claimed_identity(payload) is None
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    assert claimed_identity(b'{"epoch":"e1","seq":7,"x":NaN}') == ("e1", 7)


@pytest.mark.parametrize("decode", [decode_chunk, decode_ack])
def test_four_megabytes_of_empty_lists_do_not_become_hundreds(decode: Callable[[bytes], object]) -> None:
    many = 1_300_000
    cbor = b"\xa2\x61v\x01\x61x\x9a" + many.to_bytes(4, "big") + b"\x80" * many
    json_text = b'{"v":1,"x":[' + b"[]," * many + b"0]}"
    tracemalloc.start()
    try:
        with pytest.raises(WireError):
            decode(cbor if decode is decode_chunk else json_text)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_the_command_ends_with_its_totals() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--runs", "60", "--target", "topic", "--target", "ack"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    totals = json.loads(ended.stdout.splitlines()[-1])
    assert (totals["bad"], totals["accepted"], totals["crashed"], totals["clean"]) == (60, 0, 0, True)
