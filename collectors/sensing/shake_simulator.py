"""`infomae-stream sensor simulate-shake`: the bytes that a Raspberry Shake sends, for those who have none."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Iterator
from typing import Annotated, Final

import typer

from collectors.sources.raspberry_shake import format_datagram
from infomae_stream.clock import NS_PER_S, Clock, SystemClock
from infomae_stream.errors import ConfigError
from infomae_stream.scene import ContinuousScene, SceneNode

BLOCK_S: Final = 0.25  # a Shake at 100 Hz sends 25 samples at a time


class ShakeSimulator:
    """A geophone beside the road of the synthetic scene. loss: share of datagrams that are not sent.

    drift_ppm: by how much the digitizer samples too fast, seen by the wall clock that stamps the datagrams.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        channel: str = "EHZ",
        seed: int = 0,
        loss: float = 0.0,
        drift_ppm: float = 0.0,
    ) -> None:
        self._clock, self._channel, self._loss = clock, channel, loss
        self._random = random.Random(seed)
        self._scene = ContinuousScene(seed, [SceneNode("site", "shake", 0.0, ("seismic",))])
        (self.spec,) = self._scene.streams()
        self._block = round(BLOCK_S * self.spec.rate_hz)
        self._step_ns = self._block * NS_PER_S / (self.spec.rate_hz * (1 + drift_ppm * 1e-6))
        self._begin_ns = clock.now_ns() // NS_PER_S * NS_PER_S
        self._began_ns = clock.monotonic_ns() - (clock.now_ns() - self._begin_ns)
        self._sent = 0

    def due(self) -> Iterator[bytes]:
        """The datagrams whose last sample has been taken by now and that are not lost."""
        while self._clock.monotonic_ns() - self._began_ns >= (self._sent + 1) * self._step_ns:
            true_ns = self._begin_ns + self._sent * round(BLOCK_S * NS_PER_S)
            stamp_ns = self._begin_ns + round(self._sent * self._step_ns)
            self._sent += 1
            if self._random.random() >= self._loss:
                counts_CN = self._scene.read(self.spec.id, true_ns, self._block)
                yield format_datagram(self._channel, stamp_ns, counts_CN[0].tolist())


def simulate_shake(
    to: Annotated[str, typer.Option(help="host:port that the datagrams are sent to.")] = "127.0.0.1:8888",
    channel: Annotated[str, typer.Option(help="Channel code.")] = "EHZ",
    seconds: Annotated[float, typer.Option(min=0, help="0: until Ctrl-C.")] = 0.0,
    loss: Annotated[float, typer.Option(min=0, max=1, help="Share of datagrams that get lost.")] = 0.0,
    drift_ppm: Annotated[float, typer.Option(help="How much too fast the digitizer samples.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the scene and of the losses.")] = 0,
) -> None:
    """Send what a Raspberry Shake beside the synthetic scene's road would."""
    host, _, port = to.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"{to!r} is not host:port", where="--to", fix="write it as in 127.0.0.1:8888")
    clock = SystemClock()
    simulator = ShakeSimulator(clock, channel=channel, seed=seed, loss=loss, drift_ppm=drift_ppm)
    pause, sent = threading.Event(), 0
    until_ns = clock.monotonic_ns() + round(seconds * NS_PER_S)
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as s:
        typer.echo(f"{channel} at {simulator.spec.rate_hz:g} Hz to {to}; Ctrl-C ends it", err=True)
        while not seconds or clock.monotonic_ns() < until_ns:
            for datagram in simulator.due():
                s.sendto(datagram, (host.strip("[]"), int(port)))
                sent += 1
            pause.wait(BLOCK_S / 5)
    typer.echo(f"{sent} datagrams sent", err=True)
