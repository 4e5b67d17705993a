"""A detection of an event on the wire, and records of versions before events."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from infomae_stream.errors import DataError, WireError
from infomae_stream.types import Detection, Event
from infomae_stream.wire import decode_detection, encode_detection

EVENT = Event(7, 0.9, 2, True, ("watch_imu",), {"phone_imu": 0.4, "watch_imu": -0.1}, 0.6, 0.42)
PLAIN = Detection("s01", "n", "e0", 9, 1, 2, "walking", {"walking": 0.75, "seated": 0.25}, ("phone_imu",), 3, "ab")
# As version 0.1.0 wrote it.
OLD = (
    b'{"v": 1, "site": "s01", "node": "n", "epoch": "e0", "seq": 9, "start_ns": 1, "end_ns": 2, "label": "walking",'
    b' "scores": {"walking": 0.75, "seated": 0.25}, "modalities": ["phone_imu"], "bundle_version": 3,'
    b' "bundle_sha256": "ab"}'
)


def test_an_event_comes_back_as_it_went() -> None:
    detection = replace(PLAIN, event=EVENT)
    assert decode_detection(encode_detection(detection)) == detection


def test_a_record_of_before_events_keeps_its_bytes() -> None:
    assert decode_detection(OLD) == PLAIN
    assert encode_detection(decode_detection(OLD)) == OLD, "its checksum is made of them"


@pytest.mark.parametrize(
    "change",
    [
        {"windows": 0}, {"windows": 1.5}, {"part": 0}, {"peak_score": 1.5}, {"peak_score": "1"}, {"ongoing": 1},
        {"missing": "watch_imu"}, {"missing": [1]}, {"attribution": []}, {"attribution": {"x": None}}, {"on": -0.1},
        {"off": True}, {"windows": None},
    ],
)  # fmt: skip
def test_an_event_that_is_none_is_refused(change: dict[str, Any]) -> None:
    message = json.loads(encode_detection(replace(PLAIN, event=EVENT)))
    with pytest.raises(WireError) as caught:
        decode_detection(json.dumps({**message, "event": {**message["event"], **change}}).encode())
    assert caught.value.reason == "schema"


@pytest.mark.parametrize("event", [[], 1, "x", {}])
def test_what_is_no_object_is_no_event(event: object) -> None:
    message = json.loads(OLD)
    with pytest.raises(WireError):
        decode_detection(json.dumps({**message, "event": event}).encode())


def test_scores_and_counts_of_an_event_are_checked_where_it_is_made() -> None:
    with pytest.raises(DataError, match="from 0 to 1"):
        replace(EVENT, on=1.2)
