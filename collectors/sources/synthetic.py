"""A node beside the road of the synthetic scene: what its geophone, microphone or IMU would give. Always synthetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Final, Literal

from pydantic import AwareDatetime, Field

from collectors.sources import Reading, SourceContext
from infomae_stream.clock import NS_PER_S
from infomae_stream.config import Settings
from infomae_stream.errors import SourceClosed
from infomae_stream.scene import ContinuousScene, SceneNode
from infomae_stream.types import StreamSpec

BLOCK_S: Final = 5.0  # at most this much in one reading


class SyntheticOptions(Settings):
    seed: int = 0  # nodes of one scene share it
    kinds: Annotated[list[Literal["seismic", "acoustic", "imu"]], Field(min_length=1)] = ["seismic", "acoustic"]
    position_m: float = 0.0
    response: int = Field(0, ge=0, le=3)
    period_s: float = Field(20.0, gt=0)
    speed_m_s: float = Field(10.0, gt=0)
    snr_db: float = 15.0
    start: AwareDatetime | None = None  # time of the scene; now when it is left out
    duration_s: float = Field(0.0, ge=0)  # 0: for ever
    speed: float = Field(1.0, gt=0)  # of time; other than 1 only with `start`


class SyntheticSource:
    """Live (no `start`): samples as time goes, a restart leaves a hole. With `start`: goes on where it was."""

    Options: ClassVar[type[Settings]] = SyntheticOptions

    def __init__(self, options: SyntheticOptions, context: SourceContext) -> None:
        self._clock = context.clock
        node = SceneNode(
            context.site, context.node, options.position_m, tuple(options.kinds), response=options.response
        )
        self._scene = ContinuousScene(
            options.seed, [node], period_s=options.period_s, speed_m_s=options.speed_m_s, snr_db=options.snr_db
        )
        self._specs = {spec.id.stream: spec for spec in self._scene.streams()}
        self._speed = options.speed if options.start else 1.0
        begin = options.start.timestamp() if options.start else self._clock.now_ns() / NS_PER_S
        self._begin_ns = round(begin) * NS_PER_S  # the scene's samples lie on whole seconds
        self._began_ns = self._clock.monotonic_ns()
        self._end = {s: self._count(spec, options.duration_s) for s, spec in self._specs.items()}
        self._offset = dict.fromkeys(self._specs, 0)
        if options.start:
            self._resume(context)

    def specs(self) -> Sequence[StreamSpec]:
        return tuple(self._specs.values())

    def poll(self, timeout_s: float) -> Sequence[Reading]:
        """What has come due in each stream. Waits on the clock only when nothing is due yet."""
        if all(self._end[s] and self._offset[s] >= self._end[s] for s in self._specs):
            raise SourceClosed("the scene is over")
        readings = self._due()
        if not readings and timeout_s > 0:
            self._clock.sleep(timeout_s)
            readings = self._due()
        return readings

    def close(self) -> None:
        return

    def _resume(self, context: SourceContext) -> None:
        for stream in self._specs:
            position = context.position(stream)
            if position is not None:
                self._offset[stream] = position.offset
        # The scene's clock goes on where the stream that is furthest back stopped.
        played_s = min(self._offset[s] / spec.rate_hz for s, spec in self._specs.items())
        self._began_ns -= round(played_s / self._speed * NS_PER_S)

    def _due(self) -> list[Reading]:
        played_s = (self._clock.monotonic_ns() - self._began_ns) / NS_PER_S * self._speed
        readings = []
        for stream, spec in self._specs.items():
            first = self._offset[stream]
            end = min(self._count(spec, played_s), first + self._count(spec, BLOCK_S), self._end[stream] or 2**62)
            if end <= first:
                continue
            elapsed_ns = round(first * NS_PER_S / spec.rate_hz)
            start_ns = self._begin_ns + elapsed_ns
            samples_CN = self._scene.read(spec.id, start_ns, end - first)
            monotonic_ns = self._began_ns + elapsed_ns if self._speed == 1.0 else start_ns
            ends = end == self._end[stream]
            readings.append(Reading(stream, start_ns, samples_CN, None, "", first, monotonic_ns, ends))
            self._offset[stream] = end
        return readings

    @staticmethod
    def _count(spec: StreamSpec, seconds: float) -> int:
        return int(seconds * spec.rate_hz)
