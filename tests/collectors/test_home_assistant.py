"""Home Assistant's discovery through a real broker: described when asked for, taken back when not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from collectors.enrolment.site import access_rules
from collectors.home_assistant import HomeAssistant
from infomae_stream.clock import ManualClock
from infomae_stream.node_config import HomeAssistantSettings, MqttSettings
from infomae_stream.outbox import Outbox
from infomae_stream.session import MqttSession
from tests.brokers import Broker, end, free_port
from tests.collect_node import NodeProcess
from tests.waiting import wait_until

TOPIC = "homeassistant/device/s01-node/config"
# The fields that Home Assistant documents for a device's description and for the two platforms that are used.
DEVICE = {"identifiers", "name", "manufacturer", "model", "sw_version"}
SHARED = {"availability_topic", "availability_template", "payload_available", "payload_not_available", "qos"}
COMPONENT = {
    "platform", "name", "unique_id", "state_topic", "value_template", "device_class", "entity_category",
    "state_class", "json_attributes_topic", "force_update",
}  # fmt: skip


def test_the_description_has_the_documented_fields_and_our_topics(tmp_path: Path) -> None:
    outbox = Outbox.open(tmp_path / "o.sqlite", ManualClock(), max_bytes=10**6, reserve_bytes=0)
    said = HomeAssistant(HomeAssistantSettings(enabled=True), outbox, site="s01", node="s01-node").description()
    outbox.close()
    assert set(said) == {"device", "origin", "components"} | SHARED
    assert set(said["device"]) == DEVICE and said["origin"]["name"] == "infomae-stream"
    assert said["availability_topic"] == "infomae/v1/s01/s01-node/status"
    assert set(said["components"]) == {"clock", "streams", "detection", "bundle"}
    for component in said["components"].values():
        assert {"platform", "unique_id", "name", "state_topic", "value_template"} <= set(component) <= COMPONENT
        assert component["platform"] in ("sensor", "binary_sensor")
        assert component["state_topic"].startswith("infomae/v1/s01/s01-node/")
    identities = [c["unique_id"] for c in said["components"].values()]
    assert len(set(identities)) == len(identities)
    assert said["components"]["detection"]["state_topic"] == "infomae/v1/s01/s01-node/detections"


def test_the_acl_of_a_hub_does_not_allow_it_unasked() -> None:
    assert "homeassistant" not in access_rules()


def write(node: NodeProcess, port: int, table: str) -> None:
    node.config.write_text(
        f"{table}\n[mqtt]\nport = {port}\n[metrics]\ncollect_port = {node.metrics_port}\n"
        '[outbox]\ncommit_interval_s = 0.2\n[[nodes]]\nsite = "s01"\nnode = "s01-node"\n'
        f'sources = [{{ type = "raspberry_shake", station = "R1234", port = {free_port()} }}]\n',
        encoding="utf-8",
    )


class Listener:
    """What is retained now, by topic, as one who subscribes late is told."""

    def __init__(self, port: int) -> None:
        self._session = MqttSession(MqttSettings(port=port), "ha", subscriptions=[("#", 1)])
        self._session.start()
        self.retained: dict[str, bytes] = {}

    def heard(self, topic: str) -> bytes | None:
        for message in self._session.poll(0.05):
            self.retained[message.topic] = message.payload
        return self.retained.get(topic)

    def json(self, topic: str) -> Any:
        return json.loads(self.heard(topic) or b"null")

    def close(self) -> None:
        end(self._session)


@pytest.mark.slow
def test_a_node_is_described_while_it_is_asked_for_and_taken_out_after(tmp_path: Path) -> None:
    broker = Broker("mosquitto", tmp_path).start()
    node, ha = NodeProcess(tmp_path), Listener(broker.port)
    status = "infomae/v1/s01/s01-node/status"
    try:
        write(node, broker.port, "")
        node.start()
        wait_until(lambda: (ha.json(status) or {}).get("streams") == 1, what="the node online")
        assert ha.heard(TOPIC) is None  # off by default
        write(node, broker.port, "[home_assistant]\nenabled = true\n")
        node.hang_up()
        wait_until(lambda: ha.heard(TOPIC), what="the description")
        said = ha.json(TOPIC)
        topics = {said["availability_topic"], said["components"]["streams"]["state_topic"]}
        assert topics == {status}
        assert ha.json(status)["state"] == "online" and "synchronised" in ha.json(status)["clock"]
        write(node, broker.port, '[home_assistant]\nenabled = true\nprefix = "ha"\n')
        node.hang_up()
        wait_until(lambda: ha.heard("ha/device/s01-node/config"), what="the description elsewhere")
        wait_until(lambda: ha.heard(TOPIC) == b"", what="the old one taken back")
        write(node, broker.port, "")
        node.hang_up()
        wait_until(lambda: ha.heard("ha/device/s01-node/config") == b"", what="the description taken back")
        late = Listener(broker.port)
        try:
            wait_until(lambda: late.heard(status), what="what is retained")
            assert not late.heard("ha/device/s01-node/config") and not late.heard(TOPIC)
        finally:
            late.close()
    finally:
        node.stop()
        ha.close()
        broker.stop()
