"""One MQTT connection that mends itself: MQTT 5 where the broker speaks it, 3.1.1 otherwise.

A thread owns the socket and everything of paho's; paho's callbacks only put on queues. What goes wrong there is kept
and raised in the consumer's `poll`. When the consumer is slow the thread stops reading, so that the pressure reaches
the broker. The session promises nothing about durability: an application acknowledgement has to.
"""

from __future__ import annotations

import os
import random
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from infomae_stream.broker_refusal import BrokerRecord, Refusal
from infomae_stream.errors import ConfigError, ConnectionFailed
from infomae_stream.node_config import MqttSettings

FIRST_BACKOFF_S: Final = 0.25
LONGEST_BACKOFF_S: Final = 10.0
CONNACK_TIMEOUT_S: Final = 5.0
GUESS_TIMEOUT_S: Final = 1.5  # for MQTT 5 where it is only a guess: some 3.1.1 brokers never answer it
SESSION_EXPIRY_S: Final = 86_400
PROTOCOLS: Final = {"5": mqtt.MQTTv5, "3.1.1": mqtt.MQTTv311}
# CONNACK codes of both protocols that a protocol change may mend, and those that only a person can.
UNSUPPORTED_PROTOCOL: Final = (1, 132)
NOT_ALLOWED: Final = (4, 5, 134, 135, 138, 140)


class Message(NamedTuple):
    topic: str
    payload: bytes
    retain: bool = False


class MqttSession:
    """Connects in the background from `start` on, for ever, with jittered back-off; subscribes anew each time.

    subscriptions: (topic filter, qos). will: (topic, payload, retain), published by the broker when we vanish.
    clean: False keeps the subscription's queue at the broker while we are away (for a day).
    base_dir: where relative file names of the settings start.
    Raises ConfigError at once when a file that the settings name cannot be read.
    """

    longest_backoff_s: ClassVar[float] = LONGEST_BACKOFF_S

    def __init__(
        self,
        settings: MqttSettings,
        client_id: str,
        *,
        subscriptions: Sequence[tuple[str, int]] = (),
        will: tuple[str, bytes, bool] | None = None,
        clean: bool = True,
        max_outgoing_bytes: int = 8_000_000,
        max_incoming_bytes: int = 32_000_000,
        base_dir: Path = Path(),
    ) -> None:
        self._settings = settings
        self._client_id = client_id
        self._subscriptions = list(subscriptions)
        self._will = will
        self._clean = clean
        self._max_outgoing_bytes = max_outgoing_bytes
        self._max_incoming_bytes = max_incoming_bytes
        self._tls = {name: _readable(base_dir, getattr(settings, name), name) for name in _TLS_FILES}
        self._password = _password(base_dir, settings)
        self.broker = BrokerRecord(self._tls["ca_file"], self._tls["cert_file"])
        self._protocol = "3.1.1" if settings.protocol == "3.1.1" else "5"

        self._lock = threading.Condition()
        # Under the lock: what both threads touch.
        self._incoming: deque[Message] = deque()
        self._incoming_bytes = 0
        self._outgoing: deque[Message] = deque()
        self._outgoing_bytes = 0  # queued and not yet acknowledged by the broker
        self._error: Exception | None = None
        self._connected = False
        self._interrupted = False
        self._connections = 0
        self._pauses = 0
        # Of the session's thread alone.
        self._unacknowledged: dict[int, Message] = {}
        self._events: deque[tuple[str, int, str]] = deque()
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"mqtt {client_id}", daemon=True)

    def start(self) -> None:
        """Begin to connect; returns at once."""
        self._thread.start()

    def poll(self, timeout_s: float) -> list[Message]:
        """What has arrived, in order; empty when nothing has within `timeout_s`.

        Raises what went wrong in the background, once each; ConnectionFailed when the broker refuses us. The session
        goes on trying after that, so the caller may log it and poll again.
        """
        with self._lock:
            if not self._incoming and self._error is None and not self._interrupted and timeout_s > 0:
                self._lock.wait(timeout_s)
            self._interrupted = False
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            messages = list(self._incoming)
            self._incoming.clear()
            was_full = self._incoming_bytes >= self._max_incoming_bytes
            self._incoming_bytes = 0
        if was_full:
            self._wake()
        return messages

    def interrupt(self) -> None:
        """Let the `poll` that waits, or the next one, return at once; from any thread."""
        with self._lock:
            self._interrupted = True
            self._lock.notify_all()

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        """Hand a message over, QoS 1, also while there is no connection. False when `max_outgoing_bytes` are waiting.

        It is sent again after a reconnect until the broker has taken it or this process ends.
        """
        with self._lock:
            if self._outgoing_bytes and self._outgoing_bytes + len(payload) > self._max_outgoing_bytes:
                return False
            self._outgoing.append(Message(topic, payload, retain))
            self._outgoing_bytes += len(payload)
        self._wake()
        return True

    @property
    def connected(self) -> bool:
        return self._connected

    @property
    def reconnects(self) -> int:
        """Connections after the first."""
        return max(self._connections - 1, 0)

    @property
    def pauses(self) -> int:
        """How often reading stopped because the consumer had `max_incoming_bytes` before it."""
        return self._pauses

    @property
    def protocol(self) -> str:
        """ "5" or "3.1.1": what is spoken, or tried next."""
        return self._protocol

    @property
    def inflight_bytes(self) -> int:
        """Payload bytes that the broker has not taken yet."""
        return self._outgoing_bytes

    def close(self, timeout_s: float = 2.0) -> None:
        """Send what waits, for at most `timeout_s` while connected, then disconnect. The will is not published."""
        deadline = time.monotonic() + timeout_s
        patience_s = timeout_s if self._connected else 0.5  # a connect that hangs is left to end by itself
        with self._lock:
            while self._connected and self._outgoing_bytes and time.monotonic() < deadline:
                self._lock.wait(0.05)
        self._stop.set()
        self._wake()
        if self._thread.ident is None:  # never started
            self._close_wake()
        else:
            self._thread.join(patience_s)

    def _wake(self) -> None:
        # Locked, so that it does not write to what has the number of a socket that was just closed.
        with self._lock, suppress(OSError):  # full: it will wake anyway; or closed
            self._wake_write.send(b"x")

    def _close_wake(self) -> None:
        with self._lock:
            self._wake_read.close()
            self._wake_write.close()

    # -- the session's thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._connect_again_and_again()
        finally:
            self._close_wake()  # here, because `close` does not wait for a connect that hangs

    def _connect_again_and_again(self) -> None:
        backoff_s = FIRST_BACKOFF_S
        while not self._stop.is_set():
            try:
                self._one_connection()
            except OSError as e:
                # No broker there (yet), or it hung up, or one side does not take the other's certificate.
                self._refused(self.broker.refusal(e) if not self._connected else None)
            except Exception as e:  # noqa: BLE001 - kept, and raised in the consumer
                self._fail(e)
            backoff_s = FIRST_BACKOFF_S if self._connected else min(backoff_s * 2, self.longest_backoff_s)
            self._set_connected(False)
            self._stop.wait(backoff_s * random.uniform(0.5, 1.5))  # jittered: a thousand nodes must not come at once

    def _one_connection(self) -> None:
        """Connect and serve until the connection ends. Raises OSError."""
        self._events.clear()
        client = self._make_client()
        try:
            if self._protocol == "5":
                properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
                properties.SessionExpiryInterval = 0 if self._clean else SESSION_EXPIRY_S
                options: dict[str, Any] = {"clean_start": self._clean, "properties": properties}
            else:
                options = {}
            client.connect(self._settings.host, self._settings.port, self._settings.keepalive_s, **options)
            if not self._await_connack(client):
                return
            self.broker.accepted(client)
            self._requeue()
            if self._subscriptions:
                client.subscribe(self._subscriptions)
            self._set_connected(True)
            while client.socket() is not None:
                if self._stop.is_set():
                    client.disconnect()
                self._hand_over(client)
                self._step(client, 1.0)
                self._take_events()
        finally:
            _drop(client)

    def _make_client(self) -> mqtt.Client:
        s = self._settings
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            protocol=PROTOCOLS[self._protocol],
            clean_session=self._clean if self._protocol == "3.1.1" else None,
            reconnect_on_failure=False,
        )
        if s.ca_file:
            client.tls_set(self._tls["ca_file"], self._tls["cert_file"] or None, self._tls["key_file"] or None)
        if s.username:
            client.username_pw_set(s.username, self._password or None)
        if self._will is not None:
            topic, payload, retain = self._will
            client.will_set(topic, payload, qos=1, retain=retain)
        self.broker.listen(client)
        client.on_connect = lambda _c, _u, _f, code, _p: self._events.append(("connack", int(code.value), str(code)))
        client.on_publish = lambda _c, _u, mid, code, _p: self._events.append(
            ("puback" if not code.is_failure else "refused", mid, str(code))
        )
        client.on_subscribe = lambda _c, _u, _mid, codes, _p: self._events.extend(
            ("not subscribed", 0, str(code)) for code in codes if code.is_failure
        )
        client.on_message = lambda _c, _u, m: self._enqueue(Message(m.topic, bytes(m.payload), bool(m.retain)))
        return client

    def _await_connack(self, client: mqtt.Client) -> bool:
        guess = self._settings.protocol == "auto" and self._protocol == "5"
        deadline = time.monotonic() + (GUESS_TIMEOUT_S if guess else CONNACK_TIMEOUT_S)
        while client.socket() is not None and time.monotonic() < deadline and not self._stop.is_set():
            self._step(client, 0.2)
            while self._events:
                kind, code, text = self._events.popleft()
                if kind != "connack":
                    continue
                if code == 0:
                    return True
                self._not_accepted(code, text)
                return False
        # Old brokers hang up, or say nothing, where they do not know the protocol.
        if client.socket() is not None or not self._refused(self.broker.refusal()):
            self._other_protocol()
        return False

    def _not_accepted(self, code: int, text: str) -> None:
        """The broker said no: tell the consumer, or try the other protocol next time."""
        if code in NOT_ALLOWED:
            broker = f"{self._settings.host}:{self._settings.port}"
            error = ConnectionFailed(f"the broker refuses {self._client_id!r}: {text}", where=broker)
            error.fix = "check mqtt.username, mqtt.password_file and the certificates"
            self._fail(error, "not_authorised")
        elif code in UNSUPPORTED_PROTOCOL:
            self._other_protocol()

    def _other_protocol(self) -> None:
        if self._settings.protocol == "auto":
            self._protocol = "3.1.1" if self._protocol == "5" else "5"

    def _step(self, client: mqtt.Client, timeout_s: float) -> None:
        """Wait for the socket or for a wake-up, then read (unless the consumer is behind) and write."""
        sock = client.socket()
        if sock is None:
            return
        paused = self._incoming_bytes >= self._max_incoming_bytes
        # TLS may hold decrypted bytes that select does not see.
        waiting = 0 if paused else getattr(sock, "pending", lambda: 0)()
        readers = [self._wake_read] if paused else [self._wake_read, sock]
        writers = [sock] if client.want_write() else []
        readable, writable, _ = select.select(readers, writers, [], 0 if waiting else timeout_s)
        if self._wake_read in readable:
            self._wake_read.recv(4096)
        if sock in readable or waiting:
            client.loop_read()
        if sock in writable:
            client.loop_write()
        client.loop_misc()

    def _hand_over(self, client: mqtt.Client) -> None:
        """Give paho what waits, a few at a time, so that a large backlog does not become paho's."""
        while len(self._unacknowledged) < 100:
            with self._lock:
                if not self._outgoing:
                    return
                message = self._outgoing.popleft()
            info = client.publish(message.topic, message.payload, qos=1, retain=message.retain)
            self._unacknowledged[info.mid] = message

    def _take_events(self) -> None:
        while self._events:
            kind, mid, text = self._events.popleft()
            if kind == "not subscribed":
                topics = ", ".join(topic for topic, _ in self._subscriptions)
                error = ConnectionFailed(f"the broker refuses a subscription of {topics}: {text}")
                self._fail(error, "subscribe_denied")
            message = self._unacknowledged.pop(mid, None)
            if message is None:
                continue
            if kind == "refused":
                error = ConnectionFailed(f"the broker refuses a message: {text}", where=message.topic)
                self._fail(error, "publish_denied")
            with self._lock:
                self._outgoing_bytes -= len(message.payload)
                self._lock.notify_all()

    def _requeue(self) -> None:
        """What the last connection did not get acknowledged goes first on this one."""
        with self._lock:
            self._outgoing.extendleft(reversed(self._unacknowledged.values()))
        self._unacknowledged.clear()

    def _enqueue(self, message: Message) -> None:
        with self._lock:
            before = self._incoming_bytes
            self._incoming.append(message)
            self._incoming_bytes += len(message.payload) + len(message.topic)
            if before < self._max_incoming_bytes <= self._incoming_bytes:
                self._pauses += 1
            self._lock.notify_all()

    def _set_connected(self, connected: bool) -> None:
        with self._lock:
            self._connections += connected
            self._connected = connected
            self._lock.notify_all()

    def _refused(self, refusal: Refusal | None) -> bool:
        """Tell and count what BrokerRecord found; False when there is nothing."""
        if refusal is None:
            return False
        where = f"{self._settings.host}:{self._settings.port}"
        self._fail(ConnectionFailed(refusal.text, where=where, fix=refusal.fix), refusal.reason)
        return True

    def _fail(self, error: Exception, reason: str = "") -> None:
        if reason:
            self.broker.count(reason)
        with self._lock:
            self._error = error
            self._lock.notify_all()


_TLS_FILES: Final = ("ca_file", "cert_file", "key_file")


def _readable(base_dir: Path, name: str, key: str) -> str:
    if not name:
        return ""
    path = base_dir / name
    if not os.access(path, os.R_OK):
        raise ConfigError(f"mqtt.{key}: cannot read the file", where=str(path))
    return str(path)


def _password(base_dir: Path, settings: MqttSettings) -> str:
    path = _readable(base_dir, settings.password_file, "password_file")
    return Path(path).read_text(encoding="utf-8").strip() if path else ""


def _drop(client: mqtt.Client) -> None:
    """Close the socket without a word, as a crash would; after a clean disconnect there is none left."""
    sock = client.socket()
    if sock is not None:
        sock.close()
