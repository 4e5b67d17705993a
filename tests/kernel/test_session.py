"""The MQTT session over real brokers: both protocols, losses of the broker, slow consumers, refusals."""

from __future__ import annotations

import gc
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from collectors.hub.subscriber import Subscriber
from infomae_stream.errors import ConfigError, ConnectionFailed
from infomae_stream.node_config import MqttSettings
from infomae_stream.session import Message, MqttSession
from tests.brokers import Broker, end, free_port
from tests.waiting import PATIENCE_S, wait_until


@pytest.fixture(params=["mosquitto", "amqtt"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Broker]:
    made = Broker(request.param, tmp_path).start()
    yield made
    made.stop()


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Broker]:
    made = Broker("mosquitto", tmp_path).start()
    yield made
    made.stop()


class Sessions(ExitStack):
    """Sessions of one kind, closed at the end."""

    kind: type[MqttSession]


# The hub's own client keeps the same promises.
@pytest.fixture(params=[MqttSession, Subscriber])
def sessions(request: pytest.FixtureRequest) -> Iterator[Sessions]:
    with Sessions() as stack:
        stack.kind = request.param
        yield stack


# What the embedded broker does differently shows in connecting, order and loss; there every client meets every broker.
THREE_PAIRS = pytest.mark.parametrize(
    ("broker", "sessions"),
    [("mosquitto", MqttSession), ("mosquitto", Subscriber), ("amqtt", MqttSession)],
    indirect=True,
)


def connect(stack: Sessions, port: int, client_id: str, *, protocol: str = "auto", **options: Any) -> MqttSession:
    session = stack.kind(MqttSettings(port=port, protocol=protocol), client_id, **options)
    session.start()
    stack.callback(end, session)
    wait_until(lambda: session.connected, what="connection")
    return session


def spoken_by(broker: Broker) -> str:
    """For tests of other things than the guess, which takes its time."""
    return "auto" if broker.kind == "mosquitto" else "3.1.1"


def receive(session: MqttSession, n: int) -> list[Message]:
    got: list[Message] = []

    def enough() -> bool:
        got.extend(session.poll(0.1))
        return len(got) >= n

    wait_until(enough, what=f"{n} messages")
    return got


def test_messages_arrive_in_order(broker: Broker, sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    if broker.kind == "mosquitto":  # it does answer, however late
        for module in ("infomae_stream.session", "collectors.hub.subscriber"):
            monkeypatch.setattr(f"{module}.GUESS_TIMEOUT_S", PATIENCE_S)
    hub = connect(sessions, broker.port, "hub", subscriptions=[("x/#", 1)])
    node = connect(sessions, broker.port, "node")
    assert hub.protocol == ("5" if broker.kind == "mosquitto" else "3.1.1")
    for i in range(300):
        assert node.publish(f"x/{i % 3}", str(i).encode())
    got = receive(hub, 300)
    assert [int(m.payload) for m in got] == list(range(300))
    wait_until(lambda: node.inflight_bytes == 0, what="the broker's acknowledgements")


def test_a_killed_broker_is_met_again_and_subscribed_anew(broker: Broker, sessions: Sessions) -> None:
    hub = connect(sessions, broker.port, "hub", subscriptions=[("x/#", 1)])
    node = connect(sessions, broker.port, "node")
    broker.kill()
    wait_until(lambda: not hub.connected and not node.connected, what="noticing the loss")
    assert node.publish("x/while-away", b"1")  # waits in the session
    broker.start()
    wait_until(lambda: hub.connected and node.connected, what="reconnection")

    # The waiting message may be there before the hub has subscribed again; later ones must arrive.
    def arrived() -> bool:
        node.publish("x/after", b"2")
        return any(m.topic == "x/after" for m in hub.poll(0.2))

    wait_until(arrived, what="a message after the restart")
    assert hub.reconnects == 1 and node.reconnects == 1


@THREE_PAIRS
def test_the_will_is_published_for_a_killed_process_and_not_after_close(broker: Broker, sessions: Sessions) -> None:
    protocol = spoken_by(broker)
    hub = connect(sessions, broker.port, "hub", protocol=protocol, subscriptions=[("status/#", 1)])
    program = f"""
from {sessions.kind.__module__} import {sessions.kind.__name__} as Session
from infomae_stream.node_config import MqttSettings
s = Session(MqttSettings(port={broker.port}, protocol={protocol!r}), "node", will=("status/node", b"offline", True))
s.start()
while not s.connected:
    s.poll(0.05)
print("connected", flush=True)
s.poll(100)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"connected\n"
        process.kill()
    assert receive(hub, 1)[0] == Message("status/node", b"offline", False)

    polite = connect(sessions, broker.port, "polite", protocol=protocol, will=("status/polite", b"offline", True))
    polite.publish("status/polite", b"good-bye", retain=True)
    wait_until(lambda: polite.inflight_bytes == 0, what="the broker taking it")  # `close` does not wait for ever
    end(polite)
    connect(sessions, broker.port, "marker", protocol=protocol).publish("status/marker", b"")
    got = receive(hub, 2)
    assert [(m.topic, m.payload) for m in got] == [("status/polite", b"good-bye"), ("status/marker", b"")]


@THREE_PAIRS
def test_retained_messages_reach_late_subscribers(broker: Broker, sessions: Sessions) -> None:
    protocol = spoken_by(broker)
    early = connect(sessions, broker.port, "early", protocol=protocol)
    early.publish("x/birth", b"here", retain=True)
    wait_until(lambda: early.inflight_bytes == 0, what="the broker taking it")  # or the late one may come before it
    late = connect(sessions, broker.port, "late", protocol=protocol, subscriptions=[("x/#", 1)])
    assert receive(late, 1) == [Message("x/birth", b"here", True)]


def test_a_slow_consumer_stops_the_reading_and_loses_nothing(mosquitto: Broker, sessions: Sessions) -> None:
    slow = connect(sessions, mosquitto.port, "slow", subscriptions=[("x", 1)], max_incoming_bytes=50_000)
    node = connect(sessions, mosquitto.port, "node")
    for i in range(400):
        assert node.publish("x", i.to_bytes(4, "big") + bytes(10_000))
    wait_until(lambda: slow.pauses > 0, what="a pause in reading")
    wait_until(lambda: node.inflight_bytes == 0, what="the broker taking all")
    assert slow._incoming_bytes < 200_000  # bounded, although 4 MB wait at the broker
    got = receive(slow, 400)
    assert [int.from_bytes(m.payload[:4], "big") for m in got] == list(range(400))


def test_the_outgoing_queue_is_bounded(sessions: Sessions) -> None:
    session = sessions.kind(MqttSettings(port=free_port()), "node", max_outgoing_bytes=1000)
    session.start()
    sessions.callback(end, session)
    assert session.publish("x", bytes(600))
    assert not session.publish("x", bytes(600))
    assert session.inflight_bytes == 600


def test_a_refused_password_surfaces_in_the_consumer_and_trying_goes_on(tmp_path: Path, sessions: Sessions) -> None:
    passwords = tmp_path / "passwords"
    passwords.write_text("", encoding="utf-8")
    broker = Broker("mosquitto", tmp_path, f"allow_anonymous false\npassword_file {passwords}").start()
    sessions.callback(broker.stop)
    session = sessions.kind(MqttSettings(port=broker.port, username="node"), "node")
    session.start()
    sessions.callback(end, session)
    for _ in range(2):
        with pytest.raises(ConnectionFailed, match="refuses 'node'"):
            wait_until(lambda: session.poll(0.5))


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that vouches for itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "cert.pem").write_bytes(certificate.public_bytes(pem))
    (folder / "key.pem").write_bytes(private)
    return folder / "cert.pem", folder / "key.pem"


# paho leaves the socket of a failed handshake to the garbage collector, which closes it with a warning.
handshakes_fail = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
)


@handshakes_fail
def test_tls_carries_many_messages_and_a_stranger_is_not_trusted(tmp_path: Path, sessions: Sessions) -> None:
    sessions.callback(gc.collect)  # last of all: no warning of this test is left for another
    certificate, key = write_certificate(tmp_path)
    broker = Broker("mosquitto", tmp_path, f"certfile {certificate}\nkeyfile {key}").start()
    sessions.callback(broker.stop)
    settings = MqttSettings(port=broker.port, ca_file="cert.pem")
    hub = sessions.kind(settings, "hub", subscriptions=[("x", 1)], base_dir=tmp_path)
    node = sessions.kind(settings, "node", base_dir=tmp_path)
    (tmp_path / "other").mkdir()
    other, _ = write_certificate(tmp_path / "other")
    stranger = sessions.kind(MqttSettings(port=broker.port, ca_file=str(other)), "stranger")
    for session in (hub, node, stranger):
        session.start()
        sessions.callback(end, session)
    wait_until(lambda: hub.connected and node.connected, what="connection")
    for i in range(200):
        assert node.publish("x", i.to_bytes(4, "big") + bytes(5000))
    got = receive(hub, 200)
    assert [int.from_bytes(m.payload[:4], "big") for m in got] == list(range(200))
    with pytest.raises(ConnectionFailed, match="certificate"):
        wait_until(lambda: stranger.poll(0.5))
    assert not stranger.connected


@handshakes_fail
def test_a_session_that_is_closed_while_it_connects_leaves_no_socket(tmp_path: Path, sessions: Sessions) -> None:
    sessions.callback(gc.collect)
    certificate, _ = write_certificate(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        session = sessions.kind(MqttSettings(port=port, ca_file=str(certificate)), "node")
        session.start()
        peer, _ = mute.accept()
        with peer:
            assert peer.recv(1), "the handshake has begun, and nobody answers"
            session.close()
            assert session._thread.is_alive()
    session._thread.join(PATIENCE_S)
    assert session._wake_read.fileno() == session._wake_write.fileno() == -1


def test_an_unreadable_password_file_is_a_config_error(tmp_path: Path) -> None:
    settings = MqttSettings(username="node", password_file="nowhere")
    with pytest.raises(ConfigError, match=r"mqtt\.password_file"):
        MqttSession(settings, "node", base_dir=tmp_path)


def test_the_broker_command_refuses_the_network_without_being_told() -> None:
    command = [sys.executable, "-m", "infomae_stream.cli", "broker", "run", "--host", "0.0.0.0", "--port", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 78
    assert "--allow-anonymous-network" in ended.stderr


def test_the_embedded_broker_ends_cleanly_on_sigterm(tmp_path: Path) -> None:
    broker = Broker("amqtt", tmp_path).start()
    assert broker.stop() == 0


@pytest.mark.parametrize("sessions", [MqttSession], indirect=True)
def test_amqtt_bears_a_crowd_that_comes_at_once(tmp_path: Path, sessions: Sessions) -> None:
    broker = Broker("amqtt", tmp_path).start()
    sessions.callback(broker.stop)
    for i in range(30):  # there is something to send to every newcomer, while others subscribe
        connect(sessions, broker.port, f"early-{i}", protocol="3.1.1").publish(f"x/{i}/birth", bytes(200), retain=True)
    crowd = []
    for i in range(60):
        session = sessions.kind(
            MqttSettings(port=broker.port, protocol="3.1.1"),
            f"late-{i}",
            subscriptions=[(f"y/{i}", 1), ("x/+/birth", 1)],
        )
        sessions.callback(end, session)
        crowd.append(session)
    for session in crowd:
        session.start()
    for session in crowd:
        topics: set[str] = set()
        wait_until(
            lambda session=session, topics=topics: (
                topics.update(m.topic for m in session.poll(0.1)) or len(topics) == 30
            ),
            what="all births",
        )
    assert "changed size" not in broker.log.read_text()
