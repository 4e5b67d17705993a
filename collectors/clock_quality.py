"""What this machine knows of its own clock: asked of chrony, gpsd or the kernel, or declared in the configuration."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

from collectors.gpsd import Gpsd
from infomae_stream.clock import NS_PER_S, Clock
from infomae_stream.node_config import ClockSettings
from infomae_stream.types import ClockQuality

ASK_EVERY_S: Final = 5.0
STEP_NS: Final = 50_000_000  # wall and monotonic time part by more: somebody has set the clock
ASK_GPSD_EVERY_S: Final = 1.0  # it pushes its reports: looking costs a read
CHRONYC: Final = ("chronyc", "-c", "tracking")
# Nothing is known: say so in numbers that no matcher takes.
UNKNOWN_NS: Final = 10 * NS_PER_S
_STA_UNSYNC: Final = 0x0040
_STA_NANO: Final = 0x2000
_TIME_ERROR: Final = 5


class ClockReader:
    """`read` gives the quality now; the time source behind it is asked every few seconds, and after a clock step.

    wanted: the configured source. answers: whether it gave the newest quality, and not the kernel in its place.
    """

    def __init__(self, settings: ClockSettings, clock: Clock) -> None:
        self._clock = clock
        self.wanted, self.answers = settings.source, True
        self._ask: Callable[[], ClockQuality] = {
            "system": ask_kernel,
            "chrony": ask_chrony,
            "gpsd": self._ask_gpsd,
            "declared": lambda: _declared(settings),
        }[settings.source]
        self._every_ns = round((ASK_GPSD_EVERY_S if settings.source == "gpsd" else ASK_EVERY_S) * NS_PER_S)
        self._gpsd = Gpsd(clock, port=settings.gpsd_port)
        self._asked_ns: int | None = None
        self._parted_ns = 0  # wall minus monotonic time when it was asked
        self._quality = ClockQuality("unknown", 0, UNKNOWN_NS)

    def read(self) -> ClockQuality:
        now_ns = self._clock.monotonic_ns()
        parted_ns = self._clock.now_ns() - now_ns
        # What the source said of the clock holds no longer once that has been set.
        stepped = abs(parted_ns - self._parted_ns) > STEP_NS
        if self._asked_ns is None or stepped or now_ns - self._asked_ns > self._every_ns:
            self._asked_ns, self._parted_ns = now_ns, parted_ns
            self._quality = self._ask()
            # chrony and gpsd sign what they say; the kernel is asked where they do not answer.
            self.answers = self.wanted not in ("chrony", "gpsd") or self._quality.source.startswith(self.wanted)
        return self._quality

    def close(self) -> None:
        self._gpsd.close()

    def _ask_gpsd(self) -> ClockQuality:
        """What gpsd says; what the kernel knows while there is no gpsd or no fix."""
        return self._gpsd.ask(boot_id()) or ask_kernel()


def _declared(settings: ClockSettings) -> ClockQuality:
    """As stated. The error `offset_ms` sits in the data and is not told: a clock that is wrong does not know it."""
    return ClockQuality(
        source=settings.declared_source,
        offset_ns=0,
        uncertainty_ns=round(settings.uncertainty_ms * 1e6),
        synchronised=settings.synchronised,
    )


def ask_chrony() -> ClockQuality:
    """chronyd's own words; what the kernel knows where there is no chronyd."""
    try:
        answer = subprocess.run(CHRONYC, capture_output=True, timeout=2.0, check=True).stdout.decode(errors="replace")
        return parse_tracking(answer)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return ask_kernel()


def parse_tracking(line: str) -> ClockQuality:
    """`chronyc -c tracking`: the offset is field 5, root delay 11, root dispersion 12, leap status 14 (from 1)."""
    fields = line.strip().split(",")
    offset_s, delay_s, dispersion_s = float(fields[4]), float(fields[10]), float(fields[11])
    # chrony's own bound on the error against the stratum-1 clock.
    uncertainty_s = abs(offset_s) + dispersion_s + delay_s / 2
    synchronised = fields[13] != "Not synchronised" and int(fields[2]) > 0
    return ClockQuality(
        "chrony", round(offset_s * NS_PER_S), round(uncertainty_s * NS_PER_S), synchronised, boot_id=boot_id()
    )


class _Timex(ctypes.Structure):
    """`struct timex` of <sys/timex.h> as far as it is read here; the rest is room for the kernel to write."""

    _fields_ = [
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 512),
    ]


def ask_kernel() -> ClockQuality:
    """adjtimex(2). Where there is none (not Linux, or forbidden): unsynchronised, uncertainty unknown."""
    timex = _Timex()
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex))
    except (OSError, AttributeError):
        state = -1
    if state < 0:
        return ClockQuality("unknown", 0, UNKNOWN_NS, False, boot_id=boot_id())
    offset_ns = int(timex.offset) * (1 if timex.status & _STA_NANO else 1000)
    synchronised = state != _TIME_ERROR and not timex.status & _STA_UNSYNC
    return ClockQuality("kernel", offset_ns, int(timex.maxerror) * 1000, synchronised, boot_id=boot_id())


def boot_id() -> str:
    """Changes with every boot, as monotonic time does; "" where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
