from __future__ import annotations

from collectors.clock_quality import ClockReader, ask_chrony, ask_kernel, parse_tracking
from infomae_stream.clock import ManualClock
from infomae_stream.node_config import ClockSettings

TRACKING = "C0A80101,gps.local,1,1700000000.1,0.000012345,-0.00001,0.00002,-12.3,0.001,0.02,0.0010,0.0005,64.2,Normal\n"


def test_chrony_tells_offset_uncertainty_and_state() -> None:
    quality = parse_tracking(TRACKING)
    assert (quality.source, quality.offset_ns, quality.synchronised) == ("chrony", 12_345, True)
    assert quality.uncertainty_ns == 12_345 + 500_000 + 500_000


def test_chrony_without_a_server_is_unsynchronised() -> None:
    assert not parse_tracking(TRACKING.replace("Normal", "Not synchronised")).synchronised


def test_the_kernel_is_asked_and_says_something_honest() -> None:
    for quality in (ask_kernel(), ask_chrony()):
        assert quality.source in ("kernel", "chrony", "unknown")
        assert quality.uncertainty_ns > 0
        assert quality.synchronised or quality.uncertainty_ns > 0


def test_a_declared_clock_does_not_tell_its_error() -> None:
    settings = ClockSettings(
        source="declared", declared_source="chrony", offset_ms=180, uncertainty_ms=500, synchronised=False
    )
    quality = ClockReader(settings, ManualClock()).read()
    assert (quality.source, quality.offset_ns, quality.uncertainty_ns, quality.synchronised) == (
        "chrony",
        0,
        500_000_000,
        False,
    )
