"""The way to the hub: address, TLS, login, what this node may publish; and the certificate it shows."""

from __future__ import annotations

import ipaddress
import json
import socket
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from collectors.deploying.finding import Finding, bad, good, refused, warn
from infomae_stream.errors import ConfigError, ConnectionFailed
from infomae_stream.node_config import MqttSettings, NodeConfig, NodeSettings
from infomae_stream.session import MqttSession
from infomae_stream.topics import node_topic

TCP_TIMEOUT_S: Final = 5.0
LOGIN_S: Final = 15.0
PUBLISH_S: Final = 5.0
ECHO_S: Final = 1.0
ENDS_SOON: Final = timedelta(days=21)  # as the alert InfomaeCertificateEnds
COPY_FIX: Final = "copy the folder that `hub enroll` printed at the hub to here"
# On `birth` and not retained: the hub only learns, once more, that this node exists. `status` drives displays.
PROBE: Final = json.dumps({"v": 1, "probe": True}).encode()


def check_broker(config: NodeConfig, node: NodeSettings) -> Iterator[Finding]:
    """Log in as the node would, under another client id: a node that runs keeps its connection."""
    check, mqtt = f"broker {node.node}", config.mqtt.for_node(node.node)
    topic = node_topic(node.site, node.node, "birth")
    client_id = f"{node.node}-doctor"
    failed = reach(check, mqtt, client_id, [topic], config.base_dir, publish=topic)
    if failed:
        yield failed
        return
    how = "over TLS" if mqtt.ca_file else "without TLS"
    yield good(check, f"{mqtt.host}:{mqtt.port}: logged in {how}, publishing on {topic} is taken")


def reach(
    check: str, mqtt: MqttSettings, client_id: str, topics: Sequence[str], base_dir: Path, *, publish: str = ""
) -> Finding | None:
    """Connect, log in, subscribe to `topics`, publish a probe on `publish`; None when all of it went well."""
    failed = _connect(check, mqtt)
    if failed:
        return failed
    try:
        session = MqttSession(mqtt, client_id, subscriptions=[(topic, 1) for topic in topics], base_dir=base_dir)
    except ConfigError as e:
        return refused(check, e, COPY_FIX)
    session.start()
    try:
        return _speak(check, session, publish, f"{mqtt.host}:{mqtt.port}")
    except ConnectionFailed as e:
        return refused(check, e, "see the broker's log")
    finally:
        session.close()


def _connect(check: str, mqtt: MqttSettings) -> Finding | None:
    where = f"{mqtt.host}:{mqtt.port}"
    try:
        socket.create_connection((mqtt.host, mqtt.port), timeout=TCP_TIMEOUT_S).close()
    except socket.gaierror:
        fix = "set mqtt.host to the hub's address, or put the name into /etc/hosts"
        return bad(check, f"nobody knows the address of {mqtt.host!r}", fix)
    except ConnectionRefusedError:
        fix = "start the broker at the hub (`systemctl status mosquitto`), or correct mqtt.port"
        return bad(check, f"nobody listens at {where}", fix)
    except TimeoutError:
        fix = "is the hub on, and does its firewall let this port in?"
        return bad(check, f"no answer from {where} within {TCP_TIMEOUT_S:g} s", fix)
    except OSError as e:
        return bad(check, f"{where} cannot be reached: {e.strerror or e}", f"see `ip route get {mqtt.host}`")
    return None


def _speak(check: str, session: MqttSession, publish: str, where: str) -> Finding | None:
    """Raises ConnectionFailed with what the broker refuses."""
    deadline = time.monotonic() + LOGIN_S
    while not session.connected:
        session.poll(0.1)
        if time.monotonic() > deadline:
            return bad(check, f"{where} is open and answers no MQTT", "is it a broker? TLS wants port 8883 and ca_file")
    if publish:
        session.publish(publish, PROBE)
    deadline = time.monotonic() + PUBLISH_S
    while session.inflight_bytes:
        session.poll(0.1)
        if time.monotonic() > deadline:
            return bad(check, f"{where} takes no message", "is the broker's disk or queue full? see its log")
    # A denied subscription is answered after the connection stands.
    deadline = time.monotonic() + ECHO_S
    while time.monotonic() < deadline and not session.poll(0.1):
        continue
    return None


def check_certificate(config: NodeConfig, node: NodeSettings, now: datetime | None = None) -> Iterator[Finding]:
    """Of one node: for whom, until when, of which authority, and who may read its key."""
    check, mqtt = f"certificate {node.node}", config.mqtt.for_node(node.node)
    if not mqtt.ca_file:
        if _is_loopback(mqtt.host):
            yield good(check, "none is needed: the broker is on this machine")
        else:
            fix = "docs/security.md: `hub init` at the hub, `node request` here, and the lines of mqtt.toml"
            yield warn(check, f"what goes to {mqtt.host} is not encrypted", fix)
        return
    if not mqtt.cert_file or not mqtt.key_file:
        yield bad(
            check, "mqtt.cert_file or mqtt.key_file is not set", "write the lines of the mqtt.toml from `hub enroll`"
        )
        return
    ca, certificate, key = (config.path(name) for name in (mqtt.ca_file, mqtt.cert_file, mqtt.key_file))
    yield _judge_certificate(check, node.node, ca, certificate, key, now or datetime.now(UTC))
    if key.exists() and key.stat().st_mode & 0o077:
        yield warn(check, f"others than its owner may read {key}", f"chmod 600 {key}")


def _judge_certificate(check: str, node: str, ca: Path, cert: Path, key: Path, now: datetime) -> Finding:
    # Here, because a node without TLS has no use for `cryptography`.
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    from infomae_stream.key_files import key_digest, load_key

    renew = f"`node request` here, then `hub enroll {node} --request {node}.csr --renew` at the hub"
    try:
        certificate = x509.load_pem_x509_certificate(cert.read_bytes())
        issuers = x509.load_pem_x509_certificates(ca.read_bytes())
        private = load_key(key)
    except PermissionError as e:
        return bad(check, f"this user may not read {e.filename}", "run the doctor with sudo")
    except FileNotFoundError as e:
        return bad(check, f"{e.filename} is not there", COPY_FIX)
    except (OSError, ValueError) as e:
        return bad(check, f"{cert} or {ca} cannot be read: {e}", COPY_FIX)
    except ConfigError as e:
        denied = isinstance(e.__cause__, PermissionError)
        return refused(check, e, "run the doctor with sudo" if denied else "`infomae-stream node request` makes one")
    names = [str(a.value) for a in certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]
    if names != [node]:
        return bad(check, f"it names {', '.join(names)!r}, this node is {node!r}", "enrol this node under its own name")
    if key_digest(certificate.public_key()) != key_digest(private.public_key()):
        return bad(check, f"{cert} is not of the key {key}", renew)
    if now > certificate.not_valid_after_utc:
        return bad(check, f"it ended on {certificate.not_valid_after_utc:%Y-%m-%d}", renew)
    if now < certificate.not_valid_before_utc:
        fix = "set this machine's clock: `chronyc makestep`"
        return bad(check, f"it begins on {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC", fix)
    for issuer in issuers:
        try:
            certificate.verify_directly_issued_by(issuer)
            break
        except (ValueError, TypeError, InvalidSignature):
            continue
    else:
        return bad(check, f"it is not signed by the authority in {ca}", COPY_FIX)
    left = certificate.not_valid_after_utc - now
    if left < ENDS_SOON:
        return warn(check, f"it ends in {left.days} days", renew)
    return good(check, f"of {node}, for {left.days} days more")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
