"""What a node has lost and got back (sensor, clock, broker, disk), in metrics and one log line each way."""

from __future__ import annotations

import json
from typing import Final

from collectors.clock_quality import ClockReader
from collectors.intake import Intake
from collectors.reopening import Reopening
from infomae_stream.certificate_expiry import measure_broker_certificate
from infomae_stream.clock import NS_PER_S, Clock
from infomae_stream.errors import OutboxError
from infomae_stream.facts import Facts
from infomae_stream.outbox import Outbox
from infomae_stream.session import MqttSession
from infomae_stream.telemetry import EventLog, Telemetry

SILENT_S: Final = 15.0  # a stream without a sample for so long, or as long as SILENT_SAMPLES take, is not alive;
LONGEST_SILENT_S: Final = 45.0  # a node says within a minute what it lost, also of a slow stream
SILENT_SAMPLES: Final = 1000
OFFLINE_S: Final = 5.0  # without a broker


def missing_sources(intake: Intake) -> list[str]:
    """The types of the sources that are configured and not there."""
    return [source.kind for source in intake.sources if isinstance(source, Reopening) and source.missing]


class NodeHealth:
    """`measure` once a commit interval; `status` is what the node then says of itself on its topic."""

    def __init__(
        self,
        clock: Clock,
        telemetry: Telemetry,
        log: EventLog,
        session: MqttSession,
        clock_reader: ClockReader,
        *,
        site: str,
        node: str,
    ) -> None:
        self._clock, self._telemetry = clock, telemetry
        self._session, self._clock_reader = session, clock_reader
        self._labels = {"site": site, "node": node}
        self._facts = Facts(clock, log, **self._labels)
        self._taken: dict[str, int] = {}
        self._outbox_error = ""
        # A session that lived through a reload has told of these already.
        self._told = {"reconnects": session.reconnects, "resent": 0}
        self._told |= {f"refused {reason}": total for reason, total in session.broker.refusals.items()}
        self.alive = self.streams = 0

    def outbox_failed(self, error: OutboxError) -> None:
        """A lock, a failing or a read-only disk, met in a step."""
        self._telemetry.counter("infomae_outbox_failures_total").labels(**self._labels).inc()
        self._outbox_error = str(error)

    def outbox_worked(self) -> None:
        """Something was committed."""
        self._outbox_error = ""

    def measure(self, intake: Intake, outbox: Outbox, resent: int) -> None:
        """Never raises for a disk that fails: the rest is told all the same."""
        self._measure_streams(intake)
        self._measure_clock()
        self._measure_broker(resent)
        try:
            self._measure_outbox(outbox)
        except OutboxError as e:
            self.outbox_failed(e)
        self._facts.tell(not self._outbox_error, "outbox_failed", "outbox_works_again", reason=self._outbox_error)
        self._set("infomae_outbox_writable", not self._outbox_error and not intake.full)

    def status(self, intake: Intake) -> bytes:
        """The retained word on `status`; it changes when one of its facts does."""
        quality = self._clock_reader.read()
        said = {
            "v": 1,
            "state": "online",
            "streams": self.streams,
            "alive": self.alive,
            "missing": missing_sources(intake),
            "clock": {"source": quality.source, "synchronised": quality.synchronised},
        }
        return json.dumps(said).encode()

    def close(self) -> None:
        self._clock_reader.close()

    def _measure_streams(self, intake: Intake) -> None:
        moving = self._telemetry.gauge("infomae_stream_alive")
        taken, rates_hz = intake.taken, intake.rates_hz
        for stream in self._taken.keys() - taken.keys():  # its recording has ended
            moving.remove_by_labels({**self._labels, "stream": stream})
            self._facts.forget("stream_silent", stream)
        self.streams, self.alive = len(taken), 0
        for stream, count in taken.items():
            good = self._facts.tell(
                count != self._taken.get(stream),
                "stream_silent",
                "stream_moves_again",
                key=stream,
                after_s=min(max(SILENT_S, SILENT_SAMPLES / rates_hz[stream]), LONGEST_SILENT_S),
                stream=stream,
            )
            moving.labels(**self._labels, stream=stream).set(good)
            self.alive += good
        self._taken = dict(taken)
        for source in intake.sources:
            if isinstance(source, Reopening):
                self._facts.tell(
                    not source.missing,
                    "source_failed",
                    "source_back",
                    key=source.key,
                    type=source.kind,
                    reason=source.missing,
                )
        self._set("infomae_sources_missing", len(missing_sources(intake)))

    def _measure_clock(self) -> None:
        quality, answers = self._clock_reader.read(), self._clock_reader.answers
        self._facts.tell(
            quality.synchronised,
            "clock_unsynchronised",
            "clock_synchronised",
            source=quality.source,
            uncertainty_s=quality.uncertainty_ns / NS_PER_S,
        )
        wanted = self._clock_reader.wanted
        self._facts.tell(answers, "clock_source_lost", "clock_source_back", wanted=wanted, in_use=quality.source)
        self._set("infomae_clock_offset_seconds", quality.offset_ns / NS_PER_S)
        self._set("infomae_clock_uncertainty_seconds", quality.uncertainty_ns / NS_PER_S)
        self._set("infomae_clock_synchronized", quality.synchronised)
        self._set("infomae_clock_source_answers", answers)

    def _measure_broker(self, resent: int) -> None:
        session = self._session
        connected = session.connected
        self._facts.tell(connected, "broker_lost", "broker_back", after_s=OFFLINE_S, effect="data wait in the outbox")
        self._set("infomae_mqtt_connected", connected)
        self._count("infomae_mqtt_reconnects_total", "reconnects", session.reconnects)
        self._count("infomae_records_resent_total", "resent", resent)
        for reason, total in session.broker.refusals.items():
            self._count("infomae_mqtt_refusals_total", f"refused {reason}", total, reason=reason)
        measure_broker_certificate(self._telemetry, session)

    def _measure_outbox(self, outbox: Outbox) -> None:
        oldest_ns = outbox.oldest_unacked_ns()
        waited_s = 0.0 if oldest_ns is None else max(self._clock.now_ns() - oldest_ns, 0) / NS_PER_S
        self._set("infomae_outbox_bytes", outbox.unacked_bytes())
        self._set("infomae_outbox_oldest_seconds", waited_s)

    def _set(self, name: str, value: float) -> None:
        self._telemetry.gauge(name).labels(**self._labels).set(value)

    def _count(self, name: str, key: str, total: int, **labels: str) -> None:
        self._telemetry.counter(name).labels(**self._labels, **labels).inc(total - self._told.get(key, 0))
        self._told[key] = total
