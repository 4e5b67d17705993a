"""Counts whom the broker turned away, from its own log as it publishes it below `$SYS/broker/log`.

mosquitto says that a certificate was not taken, and not why: the reason stands on the node, in its log and in
infomae_mqtt_refusals_total. What its ACL denies it tells to nobody but the node (MQTT 5, reason 135).
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Final

from infomae_stream.certificate_expiry import measure_broker_certificate
from infomae_stream.errors import InfomaeError
from infomae_stream.node_config import MqttSettings
from infomae_stream.session import MqttSession
from infomae_stream.telemetry import EventLog, Telemetry

LOG_TOPICS: Final = "$SYS/broker/log/#"
# Of mosquitto 2.0: part of the line -> reason. Each refused connection leaves exactly one such line.
_LINES: Final = (
    ("peer did not return a certificate", "no_certificate"),
    ("certificate verify failed", "certificate"),
    ("wrong version number", "no_tls"),
    ("http request", "no_tls"),
    ("not authorised", "not_authorised"),
)
_log = EventLog("infomae.ingest")


def refusal_in(line: str) -> str:
    """The reason that a line of mosquitto's log gives for turning somebody away; "" for all other lines."""
    return next((reason for words, reason in _LINES if words in line), "")


class BrokerWatch:
    """A connection and a thread of its own, so that a flood of refusals is never in the way of records."""

    def __init__(self, settings: MqttSettings, base_dir: Path, telemetry: Telemetry) -> None:
        self._session = MqttSession(
            settings, f"hub-watch-{os.urandom(4).hex()}", subscriptions=[(LOG_TOPICS, 0)], base_dir=base_dir
        )
        self._telemetry = telemetry
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="broker watch", daemon=True)

    def start(self) -> None:
        self._session.start()
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(2.0)
        self._session.close(0.5)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                messages = self._session.poll(0.5)
            except InfomaeError as e:
                _log.warning("broker_watch_trouble", error=str(e))
                self._stop.wait(1.0)
                continue
            measure_broker_certificate(self._telemetry, self._session)
            for message in messages:
                line = message.payload[:300].decode(errors="replace")
                reason = refusal_in(line)
                if reason:
                    self._telemetry.counter("infomae_broker_refusals_total").labels(reason=reason).inc()
                    _log.warning("broker_refused", reason=reason, line=line)
