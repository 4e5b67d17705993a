"""Row 20: certificates that are expired, revoked, foreign, missing; a node that publishes on another's topic.

A real mosquitto with the files of `hub init`, and ingest as it runs in a hub. One node delivers throughout. Around it,
in a random order, everybody comes who must not: each is refused and counted, at himself and at the hub, and nothing of
what he sends is in the lake. A node that is enrolled writes and reads on its neighbour's topics in vain, in both
protocols. In the end the deliverer itself is revoked, and shut out after a reload.
"""

from __future__ import annotations

import random
import shutil
import threading
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from collectors.hub.ingest_service import IngestService
from infomae_stream.clock import SystemClock
from infomae_stream.config import load_config
from infomae_stream.errors import ConnectionFailed
from infomae_stream.hub_config import HubConfig
from infomae_stream.node_config import MqttSettings
from infomae_stream.session import MqttSession
from infomae_stream.topics import node_topic, stream_topic
from infomae_stream.wire import encode_chunk
from storage.lake import Lake
from storage.verify import compare
from tests.brokers import free_port, wait_until
from tests.faults.trial import Row, TrialResult
from tests.hub_records import make_chunk
from tests.security.sites import HAS_MOSQUITTO, TlsSite
from tests.security.tls_sender import TlsSender
from tests.waiting import PATIENCE_S

SITE = "s01"
# What a node may be told when it is turned away. mosquitto often closes before its alert is read; then only what the
# node's own certificate shows is known, and a revocation does not show there.
EXPECTED = {
    "expired": {"certificate_expired"},
    "future": {"certificate_not_yet_valid"},
    "revoked": {"certificate_revoked", "certificate"},
    "foreign": {"certificate_foreign"},
    "nobody": {"certificate_missing"},
}


class Hub:
    """Ingest as a hub runs it, in a thread; its metrics over HTTP."""

    def __init__(self, site: TlsSite) -> None:
        config = site.site.folder / "hub.toml"
        self._port = free_port()
        text = f"\n[metrics]\ningest_port = {self._port}\n[ingest]\ncommit_interval_s = 0.1\n"
        config.write_text(config.read_text() + text)
        settings = load_config(config, HubConfig, {})
        self.lake_path = settings.lake_path
        self._stop = threading.Event()
        service = IngestService(settings, SystemClock())
        self._thread = threading.Thread(target=service.run, args=(self._stop,), daemon=True)
        self._thread.start()

    def refused(self) -> dict[str, float]:
        """Clients that the broker turned away, by reason, as the hub counts them."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=PATIENCE_S) as answer:
            lines = answer.read().decode().splitlines()
        name = "infomae_broker_refusals_total{"
        return {line.split('"')[1]: float(line.split()[-1]) for line in lines if line.startswith(name)}

    def close(self) -> None:
        self._stop.set()
        self._thread.join(20)


def intruders(site: TlsSite, foreign: TlsSite) -> dict[str, MqttSettings]:
    now = datetime.now(UTC)
    revoked = site.enrol("revoked")
    site.revoke("revoked")
    # Everything right but the authority, the name of a node that exists included.
    stranger = foreign.enrol("good").model_copy(update={"port": site.port, "ca_file": str(site.site.tls / "ca.pem")})
    return {
        "expired": site.enrol("expired", at=now - timedelta(days=60)),
        "future": site.enrol("future", at=now + timedelta(days=60)),
        "revoked": revoked,
        "foreign": stranger,
        "nobody": site.settings().model_copy(update={"cert_file": "", "key_file": ""}),
    }


def try_to_enter(kind: str, settings: MqttSettings, forged: bytes) -> str:
    """Come as `kind` and publish a forged record; "" when that was refused, and told as it should be."""
    session = MqttSession(settings, f"intruder-{kind}")
    session.publish(stream_topic(SITE, "good", "imu", "chunk"), forged)
    session.start()
    try:
        wait_until(lambda: session.broker.refusals or session.connected, what=f"an answer for {kind}")
        if session.connected:
            return f"{kind} was let in"
        told = set(session.broker.refusals)
        return "" if told <= EXPECTED[kind] else f"{kind} was told {told}"
    finally:
        session.close(0.1)


def trespass(rogue: TlsSender, protocol: str, forged: bytes, seq: int) -> str:
    """Publish as an enrolled node on the neighbour's topics; "" when nothing came of it.

    The broker takes a connection's packets in turn, so once the rogue's own record is acknowledged the others have been
    judged.
    """
    for topic in (stream_topic(SITE, "good", "imu", "chunk"), node_topic(SITE, "good", "ack")):
        rogue.session.publish(topic, forged)
    rogue.accept(make_chunk(seq, site=SITE, node="rogue"))
    wait_until(lambda: rogue.session.inflight_bytes == 0 and rogue.session.connected, what="the broker's answers")
    with suppress(ConnectionFailed):
        rogue.step()
    denied = rogue.session.broker.refusals["publish_denied"]
    # MQTT 3.1.1 has no way to say no: there the broker drops the message, and the application's ack never comes.
    return "" if denied >= (2 if protocol == "5" else 0) else f"denied {denied} of 2 with MQTT {protocol}"


def trial(rng: random.Random, folder: Path) -> TrialResult:
    failures: list[str] = []
    with ExitStack() as stack:
        site, foreign = TlsSite(folder / "site"), TlsSite(folder / "foreign")
        candidates = intruders(site, foreign)
        good_settings, rogue_settings = site.enrol("good"), site.enrol("rogue")
        stack.callback(site.stop)
        site.start()
        hub = Hub(site)
        stack.callback(hub.close)
        truth = folder / "truth"
        good = TlsSender(good_settings, SITE, "good", truth)
        stack.callback(good.close)
        forged = encode_chunk(make_chunk(1, site=SITE, node="good", seed=rng.randrange(1000, 2000)))
        sent = 0

        def deliver(count: int) -> None:
            nonlocal sent
            for _ in range(count):
                sent += 1
                good.accept(make_chunk(sent, site=SITE, node="good", n=rng.randint(1, 200)))

        deliver(1)
        wait_until(lambda: good.step() == 0, what="the first acknowledgement")
        # The counting connection must be there before the first intruder: refusals are not kept for it.
        probe = MqttSession(candidates["nobody"], "probe")
        probe.start()
        wait_until(lambda: hub.refused(), what="the hub counting")
        probe.close(0.1)
        for kind in rng.sample(sorted(candidates), len(candidates)):
            deliver(rng.randint(1, 10))
            key = "no_certificate" if kind == "nobody" else "certificate"
            before = hub.refused().get(key, 0)
            failures += filter(None, [try_to_enter(kind, candidates[kind], forged)])
            if not came_true(lambda key=key, before=before: hub.refused().get(key, 0) > before, "count"):  # type: ignore[misc]
                failures.append(f"{kind} is not counted at the hub")
            good.step()
        failures += neighbours(site, rogue_settings, truth, rng, forged)
        wait_until(lambda: good.step() == 0, 30, what="all acknowledged")
        site.revoke("good")
        site.reload()
        failures += filter(None, [shut_out(good_settings)])
        hub.close()
        found = compare(truth, Lake(hub.lake_path))
    if found.unexpected:
        failures.append(f"{found.unexpected} forged records in the lake: {found.examples}")
    return TrialResult(
        accepted=found.accepted,
        lost=found.lost,
        logical_duplicates=found.logical_duplicates,
        physical_duplicates=found.physical_duplicates,
        failures=tuple(failures),
    )


def neighbours(site: TlsSite, settings: MqttSettings, truth: Path, rng: random.Random, forged: bytes) -> list[str]:
    failures = []
    for seq, protocol in enumerate(rng.sample(["5", "3.1.1"], 2), 1):
        mine = settings.model_copy(update={"protocol": protocol})
        spy = TlsSender(mine, SITE, "rogue", truth, listen_to="good")
        failures += filter(None, [trespass(spy, protocol, forged, seq)])
        spy.close()
        own = TlsSender(mine, SITE, "rogue", truth)
        own.accept(make_chunk(seq, site=SITE, node="rogue"))
        wait_until(lambda own=own: own.step() == 0, 30, what="the rogue's own record")  # type: ignore[misc]
        own.close()
        if spy.acks:
            failures.append(f"the rogue read {spy.acks} of its neighbour's acknowledgements")
    return failures


def shut_out(settings: MqttSettings) -> str:
    """Whether a revoked node stays out once the broker has taken the list; "" when it does."""

    def refused() -> bool:
        session = MqttSession(settings, "revoked-again")
        session.start()
        try:
            wait_until(lambda: session.broker.refusals or session.connected, what="an answer")
            return not session.connected
        finally:
            session.close(0.1)

    return "" if came_true(refused, "the list in force") else "a revoked node came in after the reload"


def came_true(condition: Callable[[], object], what: str) -> bool:
    try:
        wait_until(condition, what=what)
    except AssertionError:
        return False
    return True


def missing() -> str:
    return "" if HAS_MOSQUITTO and shutil.which("mosquitto") else "mosquitto is not installed"


ROW = Row(20, "certificates: expired, revoked, foreign, missing, another's topic", trial, 4.0, missing)
