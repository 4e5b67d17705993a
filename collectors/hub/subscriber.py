"""The hub's MQTT connection: as `MqttSession`, without paho, for a consumer that must keep up with a whole fleet.

paho reads a packet in several calls and makes several objects of it, some 200 us of CPU a message; here one `recv`
brings many packets, which are cut in place, and one `send` carries all their PUBACKs. Queues, limits, back-off and
what the methods promise are `MqttSession`'s.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections import deque
from typing import Any, Final

from collectors.hub import mqtt_packets as packets
from collectors.hub.mqtt_packets import LEVELS, Connack, Login, PacketReader, ProtocolError
from infomae_stream.session import (
    CONNACK_TIMEOUT_S,
    GUESS_TIMEOUT_S,
    SESSION_EXPIRY_S,
    Message,
    MqttSession,
)
from infomae_stream.wire import MAX_MESSAGE_BYTES

RECEIVE_MAXIMUM: Final = 1000  # messages that the broker may send before our PUBACK; MQTT 5
# The largest message whole, with its topic; of a larger one enough to see that it is too large.
READ_BYTES: Final = MAX_MESSAGE_BYTES + 131_072
MOST_AT_ONCE: Final = 1_048_576
LEAST_AT_ONCE: Final = 65_536
# A broker writes packet by packet. Woken by each, we would take longer to switch threads than to read.
GATHER_S: Final = 0.002
UNACKNOWLEDGED: Final = 100  # our own messages on their way to the broker
_SUBSCRIBE_ID: Final = 65_535  # our messages count below it


class Subscriber(MqttSession):
    """One thread owns the socket. Constructor and methods as MqttSession's; QoS 1 both ways."""

    # Hubs are few. What nodes publish before theirs is back the broker drops, and they send it again only 10 s later.
    longest_backoff_s = 1.0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._once: deque[tuple[str, bytes]] = deque()  # under the lock

    def publish_once(self, topic: str, payload: bytes) -> bool:
        """Hand a message over, QoS 0: it is gone with the connection. False without one, or when too much waits.

        For what is said again when it is needed again. A PUBACK comes behind everything that the broker has for us, so
        that with QoS 1 a hub that lags could not even say what it has stored.
        """
        with self._lock:
            if not self._connected or self._outgoing_bytes + len(payload) > self._max_outgoing_bytes:
                return False
            self._once.append((topic, payload))
            self._outgoing_bytes += len(payload)
        self._wake()
        return True

    def _one_connection(self) -> None:
        self._events.clear()
        with self._lock:
            self._outgoing_bytes -= sum(len(payload) for _, payload in self._once)
            self._once.clear()
        self._level = LEVELS[self._protocol]
        self._reader = PacketReader(self._level, READ_BYTES, self._take)
        self._out = bytearray()
        self._taken: list[Message] = []
        self._topics: dict[bytes, str] = {}
        self._packet_id = 0
        self._keepalive_s: float = self._settings.keepalive_s
        sock = self._open_socket()
        try:
            connack = self._log_in(sock)
            if connack is None:
                return
            self._keepalive_s = self._keepalive_s if connack.keepalive_s is None else connack.keepalive_s
            self._most_unacknowledged = min(UNACKNOWLEDGED, connack.receive_maximum)
            self.broker.note_certificate(sock)
            self._requeue()
            if self._subscriptions:
                self._out += packets.subscribe(_SUBSCRIBE_ID, self._subscriptions, self._level)
            self._flush(sock)
            self._set_connected(True)
            self._serve(sock)
        finally:
            sock.close()

    def _open_socket(self) -> socket.socket:
        """Connected, TLS shaken hands where it is set. Raises OSError."""
        s = self._settings
        sock = socket.create_connection((s.host, s.port), CONNACK_TIMEOUT_S)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if s.ca_file:
                context = ssl.create_default_context(cafile=self._tls["ca_file"])
                if s.cert_file:
                    context.load_cert_chain(self._tls["cert_file"], self._tls["key_file"] or None)
                sock = context.wrap_socket(sock, server_hostname=s.host)
            sock.setblocking(False)
        except BaseException:
            sock.close()
            raise
        return sock

    def _log_in(self, sock: socket.socket) -> Connack | None:
        """None when the broker does not take us; why is told to the consumer, or tried differently next time."""
        login = Login(
            self._client_id,
            self._settings.keepalive_s,
            self._clean,
            0 if self._clean else SESSION_EXPIRY_S,
            RECEIVE_MAXIMUM,
            self._settings.username,
            self._password,
            self._will,
        )
        self._out += packets.connect(login, self._level)
        self._flush(sock)
        guess = self._settings.protocol == "auto" and self._protocol == "5"
        deadline = time.monotonic() + (GUESS_TIMEOUT_S if guess else CONNACK_TIMEOUT_S)
        try:
            while time.monotonic() < deadline and not self._stop.is_set():
                self._wait(sock, 0.2, paused=False)
                for kind, body in self._read(sock):
                    if kind == packets.CONNACK:
                        connack = packets.read_connack(body, self._level)
                        if connack.code:
                            self._not_accepted(connack.code, f"reason code {connack.code}")
                        return None if connack.code else connack
        except ssl.SSLError:
            raise
        except OSError:
            # Old brokers hang up, or say nothing, where they do not know the protocol; others where they do not take
            # our certificate.
            if not self._refused(self.broker.refusal()):
                self._other_protocol()
            raise
        self._other_protocol()
        return None

    def _serve(self, sock: socket.socket) -> None:
        """Until we are told to stop. Raises OSError when the connection ends."""
        heard = sent = time.monotonic()
        while True:
            if self._stop.is_set():
                self._hand_over_packets()
                sock.settimeout(1.0)
                sock.sendall(self._out + packets.disconnect(self._level))
                return
            self._hand_over_packets()
            paused = self._incoming_bytes >= self._max_incoming_bytes
            if self._wait(sock, 1.0, paused) and not paused:
                time.sleep(GATHER_S)
                heard = time.monotonic()
                self._handle(self._read(sock))
            now = time.monotonic()
            if self._out:
                self._flush(sock)
                sent = now
            if self._keepalive_s and now - sent > self._keepalive_s / 2:
                self._out += packets.PINGREQ
                sent = now
            if paused:
                heard = now  # what the broker says waits in the socket
            elif self._keepalive_s and now - heard > 1.5 * self._keepalive_s:
                raise ProtocolError("the broker has gone silent")

    def _wait(self, sock: socket.socket, timeout_s: float, paused: bool) -> bool:
        """Wait for the socket or for a wake-up. True when there is something to read."""
        # TLS may hold decrypted bytes that select does not see.
        if not paused and isinstance(sock, ssl.SSLSocket) and sock.pending():
            return True
        readers = [self._wake_read] if paused else [self._wake_read, sock]
        readable, _, _ = select.select(readers, [sock] if self._out else [], [], timeout_s)
        if self._wake_read in readable:
            self._wake_read.recv(4096)
        return sock in readable

    def _read(self, sock: socket.socket) -> list[tuple[int, bytes]]:
        """Read what is there, up to what the consumer's queue has room for; give it the messages, return the rest.

        Raises OSError when the connection has ended.
        """
        room = min(max(self._max_incoming_bytes - self._incoming_bytes, LEAST_AT_ONCE), MOST_AT_ONCE)
        others: list[tuple[int, bytes]] = []
        try:
            while room > 0:
                wanted = self._reader.space(room)
                n = sock.recv_into(wanted)
                if n == 0:
                    raise ProtocolError("the broker has hung up")
                others += self._reader.feed(n)
                room -= n
                # A plain socket gave all it had. TLS gives one record at a time, 16 KiB at most.
                if n < len(wanted) and not isinstance(sock, ssl.SSLSocket):
                    break
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        finally:
            self._give()
        self._out += self._reader.acknowledge
        self._reader.acknowledge.clear()
        return others

    def _take(self, topic: bytes, payload: bytes, retain: bool) -> None:
        text = self._topics.get(topic)
        if text is None:
            if len(self._topics) > 10_000:
                self._topics.clear()
            text = self._topics[topic] = topic.decode("utf-8", "replace")
        self._taken.append(Message(text, payload, retain))

    def _give(self) -> None:
        """All messages of one read in one step."""
        if not self._taken:
            return
        size = sum([len(m.payload) + len(m.topic) for m in self._taken])
        with self._lock:
            before = self._incoming_bytes
            self._incoming.extend(self._taken)
            self._incoming_bytes += size
            if before < self._max_incoming_bytes <= self._incoming_bytes:
                self._pauses += 1
            self._lock.notify_all()
        self._taken = []

    def _handle(self, others: list[tuple[int, bytes]]) -> None:
        for kind, body in others:
            if kind == packets.PUBACK:
                packet_id, code = packets.read_puback(body)
                failed = "refused" if code >= packets.FAILURE else "puback"
                self._events.append((failed, packet_id, f"reason code {code}"))
            elif kind == packets.SUBACK:
                for code in packets.read_suback(body, self._level):
                    if code >= packets.FAILURE:
                        self._events.append(("not subscribed", 0, f"reason code {code}"))
            elif kind == packets.DISCONNECT:
                raise ProtocolError(f"the broker disconnects us: {body[:1].hex()}")
        if self._events:
            self._take_events()

    def _hand_over_packets(self) -> None:
        with self._lock:
            once = list(self._once)
            self._once.clear()
            self._outgoing_bytes -= sum(len(payload) for _, payload in once)
        for topic, payload in once:
            self._out += packets.publish(0, topic, payload, False, self._level)
        while len(self._unacknowledged) < self._most_unacknowledged:
            with self._lock:
                if not self._outgoing:
                    return
                message = self._outgoing.popleft()
            self._packet_id = self._packet_id % (_SUBSCRIBE_ID - 1) + 1
            while self._packet_id in self._unacknowledged:
                self._packet_id = self._packet_id % (_SUBSCRIBE_ID - 1) + 1
            self._unacknowledged[self._packet_id] = message
            self._out += packets.publish(self._packet_id, message.topic, message.payload, message.retain, self._level)

    def _flush(self, sock: socket.socket) -> None:
        """Send what the socket takes now. Raises OSError."""
        try:
            while self._out:
                del self._out[: sock.send(self._out)]
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            return
