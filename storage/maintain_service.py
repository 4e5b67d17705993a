"""`hub maintain`: compaction, retention and vacuum, one after the other, in a process that gives way to the others."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any, Final

import pyarrow
import typer

from infomae_stream.clock import NS_PER_S, Clock, SystemClock
from infomae_stream.config import load_config
from infomae_stream.errors import LakeError
from infomae_stream.hub_config import HubConfig
from infomae_stream.run_commands import ConfigOption
from infomae_stream.telemetry import EventLog, Telemetry, configure_logging
from storage.compaction import CompactionReport, compact
from storage.lake import Lake
from storage.lineage import pinned_versions
from storage.plain_text import json_line
from storage.retention import RetentionPolicy, RetentionReport, retire
from storage.vacuum import VacuumReport, vacuum

_NICENESS: Final = 10
_log = EventLog("infomae.maintain")


def maintain(
    config: ConfigOption,
    once: Annotated[bool, typer.Option("--once", help="One round of each, then end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --once: the reports as one line of JSON.")] = False,
) -> None:
    """Keep the lake in few files and within its limits, until SIGTERM or SIGINT."""
    configure_logging()
    # Arrow's own allocator keeps what a large merge once had.
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())
    settings = load_config(config, HubConfig)
    os.nice(_NICENESS)
    stop = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda *_: stop.set())
    service = MaintainService(settings, SystemClock(), stop)
    if not once:
        service.run()
        return
    reports = service.round(vacuum_too=True)
    if as_json:
        typer.echo(json_line({name: asdict(report) for name, report in reports.items()}))
    if service.failures:
        raise typer.Exit(1)


class MaintainService:
    """Raises LakeError when the lake cannot be opened. A step that fails is logged, counted, and tried again later."""

    def __init__(self, settings: HubConfig, clock: Clock, stop: threading.Event) -> None:
        self._settings, self._clock, self._stop = settings, clock, stop
        self._telemetry = Telemetry()
        self._lake = Lake(settings.lake_path, clock)
        self.failures = 0
        kept = settings.retention
        self._policy = RetentionPolicy(
            kept.max_bytes, kept.max_age_days, kept.keep_paired_days, kept.keep_labelled_days, kept.margin_s
        )

    def run(self) -> None:
        """Rounds at their interval, until the stop event is set; a merge under way is finished first."""
        port = self._telemetry.serve(self._settings.metrics.host, self._settings.metrics.maintain_port)
        _log.info("maintain_started", lake=str(self._lake.path), metrics_port=port)
        limits = self._settings.maintenance
        vacuum_at_ns = self._clock.monotonic_ns()
        while not self._stop.wait(limits.interval_s):
            due = self._clock.monotonic_ns() >= vacuum_at_ns
            self.round(vacuum_too=due)
            if due:
                vacuum_at_ns = self._clock.monotonic_ns() + round(limits.vacuum_interval_s * NS_PER_S)
        _log.info("maintain_stopped")

    def round(self, *, vacuum_too: bool) -> dict[str, Any]:
        """One compaction, one retention and, if asked, one vacuum; the report of each that did not fail."""
        steps: dict[str, Callable[[], Any]] = {"compact": self._compact, "retire": self._retire}
        if vacuum_too:
            steps["vacuum"] = self._vacuum
        reports = {}
        for name, step in steps.items():
            if self._stop.is_set():
                break
            try:
                reports[name] = step()
            except LakeError as e:
                self._fail(name)
                _log.error("maintenance_failed", step=name, error=str(e), fix="tried again next round")
            except Exception:  # noqa: BLE001 - the outermost loop
                self._fail(name)
                _log.exception("maintenance_failed", step=name)
        if len(reports) == len(steps):
            self._telemetry.gauge("infomae_maintenance_last_success_timestamp_seconds").set(
                self._clock.now_ns() / NS_PER_S
            )
        return reports

    def _fail(self, step: str) -> None:
        self.failures += 1
        self._telemetry.counter("infomae_maintenance_failures_total").labels(reason=step).inc()

    def _compact(self) -> CompactionReport:
        limits = self._settings.maintenance
        report = compact(
            self._lake,
            target_bytes=limits.target_bytes,
            fan_in=limits.fan_in,
            memory_bytes=limits.memory_bytes,
            should_stop=self._stop.is_set,
        )
        self._telemetry.counter("infomae_lake_compacted_bytes_total").inc(report.bytes_written)
        self._telemetry.counter("infomae_lake_copies_dropped_total").inc(report.duplicates_dropped)
        if report.merges or report.conflicts:
            _log.info("compacted", **asdict(report))
        return report

    def _retire(self) -> RetentionReport:
        report = retire(
            self._lake,
            self._policy,
            window_ns=round(self._settings.matcher.window_s * NS_PER_S),
            pins=self._pins(),
        )
        for reason, count in report.records.items():
            self._telemetry.counter("infomae_lake_retired_records_total").labels(reason=reason).inc(count)
            self._telemetry.counter("infomae_lake_retired_bytes_total").labels(reason=reason).inc(report.bytes[reason])
        if self._policy.max_bytes and report.live_bytes + report.pinned_bytes > self._policy.max_bytes:
            _log.warning(
                "above_max_bytes",
                live_bytes=report.live_bytes,
                pinned_bytes=report.pinned_bytes,
                fix="raise retention.max_bytes, or lower maintenance.keep_promoted_runs",
            )
        return report

    def _vacuum(self) -> VacuumReport:
        report = vacuum(self._lake, grace_s=self._settings.maintenance.grace_s, pins=self._pins())
        self._telemetry.counter("infomae_lake_vacuumed_bytes_total").inc(report.bytes)
        return report

    def _pins(self) -> dict[str, tuple[int, ...]]:
        settings = self._settings
        work_dir = settings.path(settings.align.work_dir)
        return pinned_versions(self._lake, work_dir=work_dir, newest=settings.maintenance.keep_promoted_runs)
