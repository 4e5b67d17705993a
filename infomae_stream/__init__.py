"""The kernel of infomae-stream: types, wire format, outbox, signal front end, bundle, MQTT session, telemetry."""

__version__ = "0.1.0"
