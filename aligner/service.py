"""`hub align`: matches what arrives, aligns when there is enough, releases what passes. Loops and wiring only."""

from __future__ import annotations

import shutil
import signal
import threading
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from aligner.bundle_server import BundleServer
from aligner.matcher import Matcher, Tick
from aligner.pairing import NO_PARTNER
from aligner.release import SUBSCRIPTIONS, Released, Releases, Rollout, read_candidate
from aligner.run_files import SNAPSHOT, STAGE_ONE_RECORD
from aligner.snapshot import freeze
from aligner.status import Status
from aligner.training_child import TrainingChild
from aligner.training_settings import train_config
from aligner.trigger import Situation, why_wait
from infomae_stream.bundle import load_private_key
from infomae_stream.clock import NS_PER_S, Clock, SystemClock
from infomae_stream.config import load_config
from infomae_stream.errors import ConfigError, InfomaeError, WireError
from infomae_stream.hub_config import HubConfig
from infomae_stream.session import MqttSession
from infomae_stream.telemetry import EventLog, Telemetry, configure_logging
from storage import query
from storage.lake import Lake
from storage.learning_tables import append_run

POLL_S: Final = 0.2
PROGRESS_EVERY_S: Final = 1.0


def align(config: Annotated[Path, typer.Option("--config", help="The TOML file.")]) -> None:
    """Find pairs, align when there are enough, release what passes the gates."""
    settings = load_config(config, HubConfig)
    configure_logging()
    log = EventLog("infomae.align")
    service = AlignService(settings, config.resolve(), SystemClock(), log)
    stop = threading.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: stop.set())
    try:
        service.run(stop)
    except InfomaeError:
        raise
    except Exception as e:
        log.exception("align_crashed", error=str(e))
        raise typer.Exit(1) from e  # hub run starts it again, and everything goes on from disk
    finally:
        service.close()


class AlignService:
    """One object, one thread; training runs in a child process, the bundle server and MQTT on threads of their own.

    Raises ConfigError for settings that cannot work, before anything is started.
    """

    def __init__(self, config: HubConfig, config_path: Path, clock: Clock, log: EventLog) -> None:
        if not config.align.validation_sites:
            raise ConfigError(
                "align.validation_sites names no site", where=str(config_path), fix="the gates need labelled people"
            )
        train_config(config.align.train, config.matcher.window_s, config.align.seed, where=str(config_path))
        self._key = load_private_key(config.path(config.release.signing_key))
        self.config, self._config_path, self._clock, self._log = config, config_path, clock, log
        self.work_dir = config.path(config.align.work_dir)
        (self.work_dir / "runs").mkdir(parents=True, exist_ok=True)
        self._lake = Lake(config.lake_path)
        self._matcher = Matcher(config.matcher, self.work_dir / "matcher.json")
        self._releases = Releases(self.work_dir / "bundles")
        self._current = self._releases.current()
        self._rollout = Rollout()
        self._telemetry = Telemetry()
        self._child: TrainingChild | None = None
        self.status = Status()
        self._server = BundleServer(self._releases.folder, config.release.host, config.release.port, log)
        self._url = config.release.advertised_url or self._server.url
        self._session = MqttSession(
            config.mqtt, "hub-align", subscriptions=SUBSCRIPTIONS, clean=True, base_dir=config.base_dir
        )
        self._pairs_version = -1
        self._pairs_changed_ns = clock.monotonic_ns()
        self._pairs_at_start = 0
        self._run_ended_ns: int | None = None
        self._failure = ""
        self._progress_ns = 0
        self._recall()

    def run(self, stop: threading.Event) -> None:
        """Until `stop` is set."""
        m = self.config.metrics
        port = self._telemetry.serve(m.host, m.align_port)
        self._telemetry.gauge("infomae_disk_free_bytes").set_function(
            lambda: float(shutil.disk_usage(self.work_dir).free)
        )
        self._log.info("align_started", metrics_port=port, bundles=self._url, work_dir=str(self.work_dir))
        self._session.start()
        next_tick_ns = 0
        while not stop.is_set():
            self._listen()
            self._tend_child()
            if self._clock.monotonic_ns() >= next_tick_ns:
                self.tick()
                next_tick_ns = self._clock.monotonic_ns() + round(self.config.matcher.interval_s * NS_PER_S)

    def close(self) -> None:
        if self._child is not None:
            self._log.warning("alignment_stopped", run=self._child.run)
            self._child.stop()
        self._session.close()
        self._server.close()

    def tick(self) -> None:
        """Match what is new; start a run when it is time. What the disk refuses is tried again at the next tick."""
        try:
            self._take_tick(self._matcher.update(self._lake))
            self._maybe_start()
        except (InfomaeError, OSError) as e:
            self._log.error("matcher_failed", error=str(e))
        self._write_status()

    # -- pairs ---------------------------------------------------------------------------------------------------------

    def _take_tick(self, tick: Tick) -> None:
        version = self._lake.version("pairs")
        if version != self._pairs_version:
            held_out = {*self.config.align.validation_sites, *self.config.align.test_sites}
            paired = Counter(p.site for p in query.read_pairs(self._lake, paired_only=True, version=version))
            learn = sum(n for site, n in paired.items() if site not in held_out)
            if learn != self.status.pairs_to_learn_from or self._pairs_version < 0:
                self._pairs_changed_ns = self._clock.monotonic_ns()
            self._pairs_version = version
            self.status.pairs, self.status.pairs_to_learn_from = paired.total(), learn
            counts = query.pair_counts(self._lake, version=version)
            self.status.pairs_refused = {reason: n for reason, n in counts.items() if reason != "paired"}
        self.status.windows, self.status.windows_by_modality = sum(tick.windows.values()), dict(tick.windows)
        self.status.pairs_refused[NO_PARTNER] = tick.no_partner
        if tick.new_ranges:
            self._log.info(
                "matcher_tick",
                windows=self.status.windows,
                pairs=self.status.pairs,
                refused=self.status.pairs_refused,
                looked_at=tick.candidates,
            )
        t = self._telemetry
        for modality, n in tick.windows.items():
            t.gauge("infomae_windows_total").labels(kind=modality).set(n)
        t.gauge("infomae_pairs_total").set(self.status.pairs)
        for outcome, n in {"paired": self.status.pairs, **self.status.pairs_refused}.items():
            t.gauge("infomae_pair_candidates_total").labels(outcome=outcome).set(n)
        for lag_ns in tick.lags_ns:
            t.histogram("infomae_pair_lag_seconds").observe(abs(lag_ns) / NS_PER_S)

    # -- runs ----------------------------------------------------------------------------------------------------------

    def _recall(self) -> None:
        """What earlier processes came to: from the lake, the folder of bundles and the folders of runs."""
        for run in query.read_runs(self._lake):
            self.status.runs.append({k: v for k, v in run.items() if k not in ("run_id", "ended_ns", "snapshot")})
        current = self._current
        if current is not None:
            self._tell_bundle(current)
            if current.run not in {r["run"] for r in self.status.runs}:
                # Killed between the release and its row.
                self._record(read_candidate(self._run_folder(current.run)), current)

    def _maybe_start(self) -> None:
        if self._child is not None:
            self.status.waiting = ""
            return
        self.status.waiting = why_wait(self._situation(), self.config.align.trigger)
        if self.status.waiting:
            return
        number = max([0, *(int(p.name) for p in (self.work_dir / "runs").iterdir() if p.name.isdigit())]) + 1
        folder = self._run_folder(number)
        folder.mkdir()
        snapshot = freeze(self._lake, self.config, self._clock.now_ns())
        snapshot.write(folder / SNAPSHOT)
        arguments = ["--config", str(self._config_path), "--snapshot", str(folder / SNAPSHOT)]
        arguments += ["--out", str(folder), "--run", str(number)]
        pretrained = sorted(p.parent for p in (self.work_dir / "runs").glob(f"*/{STAGE_ONE_RECORD}"))
        if pretrained:
            arguments += ["--reuse", str(pretrained[-1])]
        if self._current is not None:
            arguments += ["--serving", str(self._run_folder(self._current.run))]
        self._pairs_at_start = self.status.pairs_to_learn_from
        self._child = TrainingChild(arguments, number, folder)
        self._failure = ""
        self.status.training = {"run": number, "stage": "start", "done": 0, "total": 1, "eta_s": None, "metrics": {}}
        self._log.info(
            "alignment_started",
            run=number,
            pid=self._child.pid,
            pairs=self.status.pairs_to_learn_from,
            unpaired_windows=self.status.pairs_refused.get(NO_PARTNER, 0),
            tables=snapshot.tables,
        )

    def _situation(self) -> Situation:
        align, now_ns = self.config.align, self._clock.monotonic_ns()
        judged = [r for r in self.status.runs if r["outcome"] != "failed"]
        failures = 0
        for record in reversed(self.status.runs):
            if record["outcome"] != "failed":
                break
            failures += 1
        held_out = {*align.validation_sites, *align.test_sites}
        labels = query.read_labels(self._lake) if self.status.pairs_to_learn_from >= align.trigger.min_pairs else []
        return Situation(
            pairs=self.status.pairs_to_learn_from,
            pairs_at_last_run=int(judged[-1]["pairs_at_start"]) if judged else 0,
            settled_s=(now_ns - self._pairs_changed_ns) / NS_PER_S,
            since_run_s=None if self._run_ended_ns is None else (now_ns - self._run_ended_ns) / NS_PER_S,
            failures=failures,
            train_labels=sum(i.purpose == "train" and i.site not in held_out for i in labels),
            validation_labels=sum(i.site in align.validation_sites for i in labels),
        )

    def _tend_child(self) -> None:
        child = self._child
        if child is None:
            return
        for line in child.lines():
            if line.get("event") == "progress":
                self._take_progress(child.run, line)
            elif line.get("event") == "failed":
                self._failure = str(line.get("error", ""))
        code = child.ended()
        if code is None:
            return
        child.stop()
        self._child, self.status.training = None, None
        self._run_ended_ns = self._clock.monotonic_ns()
        try:
            self._conclude(child, code)
        except (InfomaeError, OSError) as e:
            self._fail(child.run, str(e))
        self._write_status()

    def _take_progress(self, run: int, line: dict[str, Any]) -> None:
        self.status.training = {"run": run, **{k: v for k, v in line.items() if k != "event"}}
        now_ns = self._clock.monotonic_ns()
        if now_ns - self._progress_ns < PROGRESS_EVERY_S * NS_PER_S and line["done"] != line["total"]:
            return
        self._progress_ns = now_ns
        self._log.info("training_progress", **self.status.training)
        self._write_status()

    def _conclude(self, child: TrainingChild, code: int) -> None:
        if code != 0:
            self._fail(child.run, self._failure or f"the training process ended with {code}")
            return
        candidate = read_candidate(child.folder)
        self._log.info(
            "alignment_evaluated",
            run=child.run,
            stage_1=candidate["stage_1"],
            total_seconds=candidate["seconds"],
            **candidate["alignment"],
        )
        for verdict in candidate["verdicts"]:
            self._log.info("gate_verdict", run=child.run, **verdict)
        for term, value in candidate["losses"].items():
            if value is not None:
                self._telemetry.gauge("infomae_alignment_loss").labels(term=term).set(value)
        self._show_scores(candidate["alignment"])
        released = None
        if all(v["passed"] for v in candidate["verdicts"]):
            released = self._releases.release(
                child.folder, self._key, self._clock.now_ns(), self.config.release.expires_days
            )
            self._current = released
            self._tell_bundle(released)
            self._telemetry.gauge("infomae_alignment_last_success_timestamp_seconds").set(
                self._clock.now_ns() / NS_PER_S
            )
            self._log.info(
                "bundle_released", version=released.version, sha256=released.sha256, url=self._bundle_url(released)
            )
        else:
            reasons = [f"{v['gate']}: {v['reason']}" for v in candidate["verdicts"] if not v["passed"]]
            self._log.warning("candidate_not_promoted", run=child.run, reasons=reasons)
        self._record(candidate, released)

    def _show_scores(self, alignment: dict[str, Any]) -> None:
        shown = {
            "before": alignment["macro_f1_before"],
            "after": alignment["macro_f1_after"],
            "multimodal": alignment["multimodal_macro_f1"],
            **alignment["baselines"],
        }
        for term, value in shown.items():
            if value is not None:
                self._telemetry.gauge("infomae_alignment_macro_f1").labels(term=term).set(value)

    def _record(self, candidate: dict[str, Any], released: Released | None) -> None:
        failed = [v for v in candidate["verdicts"] if not v["passed"]]
        self._append_run(
            {
                "run": candidate["run"],
                "outcome": "promoted" if released else "not_promoted",
                "reasons": [f"{v['gate']}: {v['reason']}" for v in failed],
                "seconds": candidate["seconds"],
                "stage_1": candidate["stage_1"],
                "version": released.version if released else 0,
                "verdicts": candidate["verdicts"],
                "alignment": candidate["alignment"],
                "validation": candidate["validation"],
                "snapshot": candidate["snapshot"],
                "pairs_at_start": self._pairs_at_start or candidate["alignment"]["pairs"],
            }
        )

    def _fail(self, run: int, error: str) -> None:
        self._log.error("alignment_failed", run=run, error=error)
        self._append_run(
            {
                "run": run,
                "outcome": "failed",
                "reasons": [error],
                "seconds": None,
                "stage_1": "",
                "version": 0,
                "verdicts": [],
                "alignment": None,
                "validation": None,
                "pairs_at_start": self._pairs_at_start,
            }
        )

    def _append_run(self, record: dict[str, Any]) -> None:
        self._telemetry.counter("infomae_alignment_runs_total").labels(outcome=record["outcome"]).inc()
        self.status.runs.append({k: v for k, v in record.items() if k != "snapshot"})
        try:
            append_run(self._lake, {"run_id": f"run-{record['run']:06d}", "ended_ns": self._clock.now_ns(), **record})
        except InfomaeError as e:
            self._log.error("run_not_recorded", run=record["run"], error=str(e))

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        """Births and observed bundles in, desired bundles out."""
        try:
            messages = self._session.poll(POLL_S)
        except InfomaeError as e:
            self._log.warning("mqtt_failed", error=str(e))
            return
        for message in messages:
            try:
                node = self._rollout.take(message.topic, message.payload)
            except WireError as e:
                self._log.warning("message_refused", topic=message.topic[:256], reason=e.reason, error=str(e))
                continue
            if node is not None:
                observed = self._rollout.nodes[node]
                self._log.info("bundle_observed", site=node[0], node=node[1], **observed)
                self.status.nodes["/".join(node)] = observed
        for topic, payload in self._rollout.to_tell(self._current, self._url):
            # Retained, so that a node that boots at night still learns of the new bundle.
            if not self._session.publish(topic, payload, retain=True):
                break  # as much as may wait is waiting; the rest goes at the next turn
            self._rollout.told(topic, payload)

    def _bundle_url(self, released: Released) -> str:
        return f"{self._url.rstrip('/')}/{released.file}"

    def _tell_bundle(self, released: Released) -> None:
        self.status.bundle = {
            "version": released.version,
            "sha256": released.sha256,
            "url": self._bundle_url(released),
            "run": released.run,
            "promoted": True,
        }

    def _run_folder(self, number: int) -> Path:
        return self.work_dir / "runs" / f"{number:06d}"

    def _write_status(self) -> None:
        try:
            self.status.write(self.work_dir / "status.json", self._clock.now_ns())
        except OSError as e:
            self._log.error("status_not_written", error=str(e))
