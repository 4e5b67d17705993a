from __future__ import annotations

import json
from pathlib import Path

from collectors.hub.dead_letters import DeadLetters


def test_a_letter_keeps_the_bytes_and_says_why_and_comes_once(tmp_path: Path) -> None:
    letters = DeadLetters(tmp_path, 10_000)
    assert letters.keep("t/a", b"\x00\xff", "cbor", "not CBOR", 5)
    assert not letters.keep("t/a", b"\x00\xff", "cbor", "not CBOR", 6)
    assert not DeadLetters(tmp_path, 10_000).keep("t/a", b"\x00\xff", "cbor", "not CBOR", 7), "nor after a restart"
    (note,) = tmp_path.glob("*.json")
    assert json.loads(note.read_text()) == {
        "reason": "cbor", "topic": "t/a", "text": "not CBOR", "bytes": 2, "received_ns": 5,
    }  # fmt: skip
    assert note.with_suffix(".bin").read_bytes() == b"\x00\xff"


def test_beyond_the_limit_the_oldest_go_and_are_counted(tmp_path: Path) -> None:
    letters = DeadLetters(tmp_path, 3_500)
    for i in range(5):
        assert letters.keep("t/a", bytes([i]) * 1000, "crc", "x", i)
    assert letters.dropped == 2
    left = {path.read_bytes()[0] for path in tmp_path.glob("*.bin")}
    assert left == {2, 3, 4}
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 3_500


def test_a_letter_larger_than_the_folder_is_counted_and_not_written(tmp_path: Path) -> None:
    letters = DeadLetters(tmp_path, 100)
    letters.keep("t/a", b"x" * 1000, "size", "x", 5)
    assert letters.dropped == 1
    assert list(tmp_path.iterdir()) == []
