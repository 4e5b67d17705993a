"""The hub's side: from MQTT into the lake and back with the acknowledgement, and what people ask of it."""
