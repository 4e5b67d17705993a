from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from collectors.hub.subscriber import Subscriber
from infomae_stream.errors import ConnectionFailed
from infomae_stream.node_config import MqttSettings
from infomae_stream.session import MqttSession
from infomae_stream.topics import stream_topic
from tests.brokers import Broker, end
from tests.security.sites import HAS_MOSQUITTO, TlsSite
from tests.waiting import wait_until

pytestmark = pytest.mark.slow


def test_a_hub_that_does_not_read_still_says_what_it_has_stored(tmp_path: Path) -> None:
    with ExitStack() as stack:
        broker = Broker("mosquitto", tmp_path).start()
        stack.callback(broker.stop)
        settings = MqttSettings(port=broker.port)
        hub = Subscriber(settings, "hub", subscriptions=[("x", 1)], max_incoming_bytes=50_000)
        node = MqttSession(settings, "node", subscriptions=[("ack", 1)])
        assert not hub.publish_once("ack", b"without a connection")
        for session in (hub, node):
            session.start()
            stack.callback(end, session)
        wait_until(lambda: hub.connected and node.connected, what="connection")
        for _ in range(400):
            assert node.publish("x", bytes(10_000))
        wait_until(lambda: hub.pauses > 0, what="a pause in reading")
        sent = 300
        for i in range(sent):
            assert hub.publish_once("ack", b"%d" % i)
        got: list[bytes] = []

        def all_came() -> bool:
            got.extend(m.payload for m in node.poll(0.1))
            return len(got) >= sent

        wait_until(all_came, what="every acknowledgement, while the hub reads nothing")
        assert got == [b"%d" % i for i in range(sent)]


def test_of_a_shared_subscription_each_message_goes_to_exactly_one(tmp_path: Path) -> None:
    with ExitStack() as stack:
        broker = Broker("mosquitto", tmp_path).start()
        stack.callback(broker.stop)
        settings = MqttSettings(port=broker.port)
        hubs = [Subscriber(settings, f"hub-{i}", subscriptions=[("$share/hubs/x/#", 1)]) for i in range(2)]
        node = MqttSession(settings, "node")
        for session in (*hubs, node):
            session.start()
            stack.callback(end, session)
        got: list[list[bytes]] = [[], []]

        def take() -> list[list[bytes]]:
            for i, hub in enumerate(hubs):
                got[i] += [m.payload for m in hub.poll(0.02)]
            return got

        # Until both are in the group; the broker takes turns.
        def both_share() -> bool:
            node.publish("x/try", b"try")
            return all(take())

        wait_until(both_share, what="messages to both")
        for i in range(500):
            assert node.publish(f"x/{i % 7}", b"%d" % i)
        wait_until(lambda: node.inflight_bytes == 0, what="the broker taking all")
        wait_until(lambda: sum(p != b"try" for payloads in take() for p in payloads) >= 500, what="all messages")
        counted = [[int(p) for p in payloads if p != b"try"] for payloads in got]
        assert sorted(counted[0] + counted[1]) == list(range(500))
        assert all(counted), "one of the two got nothing"
        # Nothing more comes: what is published after all that, to each of them, is the next that comes.
        before = [len(payloads) for payloads in got]
        assert node.publish("x/end", b"-1") and node.publish("x/end", b"-1")
        wait_until(lambda: sum(map(len, take())) >= sum(before) + 2, what="the end")
        assert sorted(int(p) for i in (0, 1) for p in got[i][before[i] :]) == [-1, -1]


@pytest.mark.skipif(not HAS_MOSQUITTO, reason="mosquitto is not installed")
def test_a_hub_with_a_certificate_of_the_site_is_let_in_and_one_without_is_told_why(tmp_path: Path) -> None:
    with ExitStack() as stack:
        site = TlsSite(tmp_path).start()
        stack.callback(site.stop)
        topic = stream_topic("s01", "n1", "imu", "chunk")
        hub = Subscriber(site.settings(), "hub", subscriptions=[(topic, 1)])
        node = MqttSession(site.enrol("n1"), "n1")
        bare = Subscriber(site.settings().model_copy(update={"cert_file": "", "key_file": ""}), "bare")
        for session in (hub, node, bare):
            session.start()
            stack.callback(end, session)
        wait_until(lambda: hub.connected and node.connected, what="connections")
        got: list[bytes] = []

        def comes() -> bool:
            node.publish(topic, bytes(50_000))  # more than one TLS record
            got.extend(m.payload for m in hub.poll(0.2))
            return bool(got)

        wait_until(comes, what="a message over TLS")
        assert got[0] == bytes(50_000)
        with pytest.raises(ConnectionFailed):
            wait_until(lambda: bare.poll(0.5))
        assert not bare.connected and bare.broker.refusals
