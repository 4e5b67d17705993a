"""Which of the bundle's modalities take part at each node: a gauge, and a log line when one goes or comes back."""

from __future__ import annotations

from typing import Final

from inference.detector import Seen
from infomae_stream.telemetry import EventLog, Telemetry

_MISSING_LOOKS: Final = 5  # one bad window is no news


class Attendance:
    """A modality that never took part at a node is no news either: the node has no such sensor."""

    def __init__(self, telemetry: Telemetry, log: EventLog) -> None:
        self._telemetry = telemetry
        self._log = log
        self._missing_looks: dict[tuple[str, str, str], int] = {}  # of those that took part before

    def clear(self) -> None:
        """Another bundle serves, or none."""
        self._telemetry.gauge("infomae_modality_present").clear()
        self._missing_looks.clear()

    def take(self, seen: Seen) -> None:
        gauge = self._telemetry.gauge("infomae_modality_present")
        for modality in seen.modalities:
            gauge.labels(seen.site, seen.node, modality).set(1)
            key = (seen.site, seen.node, modality)
            if self._missing_looks.get(key, 0) >= _MISSING_LOOKS:
                self._log.info("modality_back", site=seen.site, node=seen.node, modality=modality)
            self._missing_looks[key] = 0
        for modality in seen.missing:
            gauge.labels(seen.site, seen.node, modality).set(0)
            key = (seen.site, seen.node, modality)
            if key not in self._missing_looks:
                continue
            self._missing_looks[key] += 1
            if self._missing_looks[key] == _MISSING_LOOKS:
                rest = ",".join(seen.modalities)
                self._log.warning(
                    "modality_missing", site=seen.site, node=seen.node, modality=modality, effect=f"{rest} go on"
                )
