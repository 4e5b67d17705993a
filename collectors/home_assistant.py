"""Home Assistant finds a node by itself: one retained message that describes the device and its entities.

Device-based MQTT discovery, `{prefix}/device/{node}/config`; field names after Home Assistant's page on its MQTT
integration (home-assistant.io/integrations/mqtt, "Device discovery payload") and on the platforms `binary_sensor` and
`sensor`. The entities read the topics that the node has anyway (docs/wire.md); an empty retained message takes the
device out again. Off unless asked for: `[home_assistant]`.
"""

from __future__ import annotations

import json
from typing import Any, Final

from infomae_stream import __version__
from infomae_stream.node_config import HomeAssistantSettings
from infomae_stream.outbox import Outbox
from infomae_stream.session import MqttSession
from infomae_stream.topics import node_topic

ANNOUNCED: Final = "home_assistant"  # state of the outbox: the topic where a description may lie


class HomeAssistant:
    def __init__(self, settings: HomeAssistantSettings, outbox: Outbox, *, site: str, node: str) -> None:
        self._outbox, self._site, self._node = outbox, site, node
        self._topic = f"{settings.prefix}/device/{node}/config" if settings.enabled else ""

    def announce(self, session: MqttSession) -> bool:
        """Describe the node, or take back what was said before; False when the session takes no more now.

        Where it was described stays written down after it was taken back: a broker that was away then hears it later.
        Raises OutboxError.
        """
        before = (self._outbox.get_state(ANNOUNCED) or b"").decode()
        if before and before != self._topic and not session.publish(before, b"", retain=True):
            return False
        if not self._topic:
            return True
        # Written down first: what is published and forgotten could never be taken back.
        if before != self._topic:
            self._outbox.set_state(ANNOUNCED, self._topic.encode())
        return session.publish(self._topic, json.dumps(self.description()).encode(), retain=True)

    def withdraw(self, session: MqttSession) -> None:
        """The node is no more."""
        if self._topic:
            session.publish(self._topic, b"", retain=True)

    def description(self) -> dict[str, Any]:
        """The discovery payload."""
        status, detections = self._our("status"), self._our("detections")
        identity = f"infomae_{self._site}_{self._node}"
        components: dict[str, dict[str, Any]] = {
            "clock": {
                "platform": "binary_sensor",
                "name": "Clock",
                "device_class": "problem",  # on: not synchronised
                "entity_category": "diagnostic",
                "state_topic": status,
                "value_template": "{{ 'OFF' if value_json.get('clock', {}).get('synchronised') else 'ON' }}",
            },
            "streams": {
                "platform": "sensor",
                "name": "Streams alive",
                "state_class": "measurement",
                "entity_category": "diagnostic",
                "state_topic": status,
                "value_template": "{{ value_json.get('alive', 'None') }}",
                "json_attributes_topic": status,
            },
            "detection": {
                "platform": "sensor",
                "name": "Last detection",
                "force_update": True,  # the same class once more is news
                "state_topic": detections,
                "value_template": "{{ value_json.label }}",
                "json_attributes_topic": detections,
            },
            "bundle": {
                "platform": "sensor",
                "name": "Bundle version",
                "entity_category": "diagnostic",
                "state_topic": self._our("bundle/observed"),
                "value_template": "{{ value_json.version }}",
            },
        }
        return {
            "device": {
                "identifiers": [identity],
                "name": self._node,
                "manufacturer": "infomae-stream",
                "model": "node",
                "sw_version": __version__,
            },
            "origin": {"name": "infomae-stream", "sw_version": __version__},
            "availability_topic": status,
            "availability_template": "{{ value_json.state }}",
            "payload_available": "online",
            "payload_not_available": "offline",
            "qos": 1,
            "components": {key: {**c, "unique_id": f"{identity}_{key}"} for key, c in components.items()},
        }

    def _our(self, leaf: str) -> str:
        return node_topic(self._site, self._node, leaf)
