"""Row 5: no way through, only one direction, a link that flaps; some with an outbox too small for it: it sheds.

The node, or ingest, is in a network namespace of its own, behind a link that goes down and drops packets. Where none
can be made, proxies stand in between; the row's title says so.
"""

from __future__ import annotations

import random
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Protocol

from tests.brokers import free_port
from tests.faults.link import IN, OUT, Link, missing_for_links
from tests.faults.played import Size
from tests.faults.proxies import DOWN, UP, Proxy
from tests.faults.stage import Settings, Stage
from tests.faults.trial import Row, TrialResult


class _Way(Protocol):
    """Between a program and the broker. `part`: in one direction only, or in both; `heal`: with what was under way,
    or with every connection dead."""

    def part(self, *, one_way: bool) -> None: ...

    def heal(self, *, connections_die: bool) -> None: ...


class _Linked:
    def __init__(self, stage: Stage, link: Link) -> None:
        self._stage, self._link = stage, link

    def part(self, *, one_way: bool) -> None:
        if one_way:
            self._link.drop(self._stage.rng.choice([IN, OUT]))
        else:
            self._link.cut()

    def heal(self, *, connections_die: bool) -> None:
        if connections_die:
            self._link.reset()
            self._stage.go_on(0.3)
        self._link.mend()


class _Proxied:
    def __init__(self, stage: Stage, proxy: Proxy) -> None:
        self._stage, self._proxy = stage, proxy

    def part(self, *, one_way: bool) -> None:
        self._proxy.closed = frozenset({self._stage.rng.choice([UP, DOWN])} if one_way else {UP, DOWN})
        self._proxy.refuses = not one_way

    def heal(self, *, connections_die: bool) -> None:
        if connections_die:
            self._proxy.cut()
        self._proxy.closed, self._proxy.refuses = frozenset(), False


def trial(rng: random.Random, folder: Path) -> TrialResult:
    return partitioned(rng, folder, linked=not missing_for_links())


def partitioned(rng: random.Random, folder: Path, *, linked: bool) -> TrialResult:
    sheds = rng.random() < 0.3
    size = (
        Size(nodes=1, seconds=240, rate_hz=500, channels=16, speed=80)
        if sheds
        else Size(nodes=2, seconds=300, speed=100)
    )
    with ExitStack() as stack:
        link = stack.enter_context(Link()) if linked else None
        port = free_port() if link else 0
        listens = f"listener {port} {link.host}" if link else ""
        stage = stack.enter_context(Stage(rng, folder, size, broker_extra=listens))
        settings = Settings(mqtt="keepalive_s = 5", node_port=port, ingest_port=port)
        if sheds:
            settings.outbox = "reserve_bytes = 0\nmax_bytes = 1000000"
        of_node = sheds or rng.random() < 0.5
        way: _Way
        if link is not None:
            settings.mqtt += f"\nhost = '{link.host}'"
            stage.configure(settings)
            (stage.node if of_node else stage.ingests[0]).within = link.within
            way = _Linked(stage, link)
        else:
            proxy = stack.enter_context(Proxy(stage.broker.port))
            settings.node_port, settings.ingest_port = (proxy.port, 0) if of_node else (0, proxy.port)
            stage.configure(settings)
            way = _Proxied(stage, proxy)
        stage.start()
        stage.go_on(rng.uniform(0, 0.5))
        kind = rng.choice(["whole", "one way", "flapping"])
        for _ in range(rng.randint(4, 8) if kind == "flapping" else 1):
            way.part(one_way=kind == "one way")
            stage.go_on(rng.uniform(0.1, 0.6) if kind == "flapping" else rng.choice([1, 1, 2, 2, 4, 9]))
            way.heal(connections_die=rng.random() < 0.5)
            stage.go_on(rng.uniform(0.0, 0.4))
        stage.fault_is_over()
        return stage.settle()


_BY: Final = f"by proxy: {why}" if (why := missing_for_links()) else "in a network namespace"
ROW: Final = Row(5, f"partition, one way, flapping ({_BY})", trial, 8.0)
