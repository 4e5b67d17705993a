"""What the sources are made of: clocks, formats and protocols of sensors. Nothing here knows the outbox."""
