"""When certificates end, as a gauge: one's own from its file, the broker's as the connection saw it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from infomae_stream.errors import ConfigError
from infomae_stream.node_config import MqttSettings
from infomae_stream.session import MqttSession
from infomae_stream.telemetry import Telemetry

_GAUGE: Final = "infomae_certificate_expiry_timestamp_seconds"


def watch_own_certificate(telemetry: Telemetry, settings: MqttSettings, base_dir: Path, node: str) -> None:
    """Export when `cert_file` ends; read at every scrape, so that a renewed file shows. 0 when it cannot be read."""
    if not settings.cert_file:
        return
    # Here, because a node without TLS has no use for `cryptography` and its memory.
    from infomae_stream.key_files import certificate_expiry

    path = base_dir / settings.cert_file

    def expiry_s() -> float:
        try:
            return certificate_expiry(path).timestamp()
        except ConfigError:
            return 0.0

    telemetry.gauge(_GAUGE).labels(node=node).set_function(expiry_s)


def measure_broker_certificate(telemetry: Telemetry, session: MqttSession) -> None:
    """Export when the broker's certificate ends, as this connection saw it."""
    expires_s = session.broker.certificate_expires_s
    if expires_s is not None:
        telemetry.gauge(_GAUGE).labels(node="broker").set(expires_s)
