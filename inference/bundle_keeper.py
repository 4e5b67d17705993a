"""Which bundle serves: loads the installed one, installs what the hub desires, reverts what fails, tells the hub."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from inference.attendance import Attendance
from inference.detector import Detector, Look
from inference.hosted_node import DESIRED_STATE
from inference.install import Desired, Installer, Prepared, parse_desired
from inference.precision import Proven, Wanted, prove
from inference.runtimes import Runtime
from inference.trial import Trial
from infomae_stream.bundle_store import BundleStore
from infomae_stream.clock import NS_PER_S, Clock
from infomae_stream.errors import BundleError, OutboxError, WireError
from infomae_stream.outbox import Outbox
from infomae_stream.telemetry import EventLog, Telemetry

_CHECK_S: Final = 1.0
_FIRST_RETRY_S: Final = 2.0
_LONGEST_RETRY_S: Final = 60.0
_LONGEST_TRIAL_S: Final = 600.0  # where there is little to look at
_RETRIED: Final = ("download", "hash")  # the next try may bring other bytes
_FOR_GOOD: Final = ("golden", "runtime", "contract", "not_finite")  # of the bundle itself, not of the file on this disk


class ServedNode(Protocol):
    """What the keeper needs of a node: where its desire stands, and where to say what became of it."""

    outbox: Outbox
    observed: bytes

    def warn(self, event: str, error: Exception) -> None: ...


class BundleKeeper:
    """The nodes of one process share one bundle: the highest version that any of them is told to serve.

    `detector` is what serves, None before the first bundle. A bundle that is refused leaves it as it was. One that is
    taken is on trial for `trial_windows` looks: it goes when it fails three times in a row, and, if there is another to
    go back to, when a modality of it does or when it takes more than `max_realtime_factor` of the time there is and
    more than twice what the other took.
    """

    def __init__(
        self,
        store: BundleStore,
        trusted_keys: Sequence[Ed25519PublicKey],
        runtime: Runtime,
        clock: Clock,
        telemetry: Telemetry,
        log: EventLog,
        *,
        precision: Wanted = "auto",
        trial_windows: int = 20,
        max_realtime_factor: float = 1.0,
    ) -> None:
        self.store = store
        self.detector: Detector | None = None
        self._trusted_keys = trusted_keys
        self._runtime = runtime
        self._clock = clock
        self._telemetry = telemetry
        self._log = log
        self._precision = precision
        self._trial_windows = trial_windows
        self._max_realtime_factor = max_realtime_factor
        self._attendance = Attendance(telemetry, log)
        self._installer = Installer(store, trusted_keys, runtime, clock, precision)
        self._trial: Trial | None = None  # of the detector that serves; None when there is none
        self._trial_until_ns = 0
        self._checked_ns = -round(_CHECK_S * NS_PER_S)
        self._refused: set[str] = set()  # sha256 of bundles that this process does not try again
        self._retry_at_ns = 0
        self._retry_s = _FIRST_RETRY_S
        self._refusal: tuple[Desired, str] | None = None
        self._swapped = False
        self._load_installed()

    def tend(self, nodes: Sequence[ServedNode]) -> bool:
        """Look for a finished install and, once a second, for a new desire; True when `detector` has changed."""
        outcome = self._installer.poll()
        if outcome is not None:
            self._finish(*outcome)
        now_ns = self._clock.monotonic_ns()
        if now_ns - self._checked_ns >= _CHECK_S * NS_PER_S:
            self._checked_ns = now_ns
            self._end_trial(now_ns)
            desired = self._desired(nodes)
            if desired is not None and self._serves(desired):
                self._refusal = None  # the hub went back to what serves
            elif desired is not None and self._is_new(desired, now_ns):
                self._log.info("bundle_install_begins", version=desired.version, sha256=desired.sha256, url=desired.url)
                self._installer.start(desired)
        self._tell(nodes)
        swapped, self._swapped = self._swapped, False
        return swapped

    def wait(self, timeout_s: float, nodes: Sequence[ServedNode]) -> bool:
        """As `tend`, but wait for an install that is under way."""
        outcome = self._installer.poll(timeout_s)
        if outcome is not None:
            self._finish(*outcome)
        return self.tend(nodes)

    def passed(self, look: Look, taken_ns: int, nodes: Sequence[ServedNode]) -> bool:
        """Take in a look of the serving detector and how long it took; True when it has to go: `detector` changed."""
        if look.seen is None or self._trial is None:
            return False
        self._attendance.take(look.seen)
        error = self._trial.passed(taken_ns / NS_PER_S * len(nodes), look.broken)
        if error is None:
            return False
        if self.store.previous is None:  # slow, or blind in one eye, is better than nothing
            self._log.warning("bundle_failed_its_trial", error=str(error), effect="it goes on, there is no other")
            self._trial.end()
            return False
        self._revert(error, nodes)
        return True

    def failed(self, error: BundleError, nodes: Sequence[ServedNode]) -> bool:
        """The serving detector gave nothing for an instant; True when it has to go: `detector` changed."""
        if self._trial is None or self._trial.failed(error) is None:
            return False
        self._revert(error, nodes)
        return True

    def close(self) -> None:
        """The process ends as it should: that is nothing against a bundle on trial."""
        if self.detector is not None:
            self._written(self.store.leave_trial, self.detector.bundle.sha256)

    def _end_trial(self, now_ns: int) -> None:
        if self.detector is None or self._trial is None:
            return
        if now_ns >= self._trial_until_ns and not self._trial.over:
            self._trial.end()
        sha256 = self.detector.bundle.sha256
        if self._trial.over and self.store.on_trial(sha256) and self._written(self.store.end_trial, sha256):
            self._log.info("bundle_confirmed", version=self.detector.bundle.version)

    def _revert(self, error: BundleError, nodes: Sequence[ServedNode]) -> None:
        """The serving bundle failed: go back to the one before it, or to none."""
        assert self.detector is not None
        bundle = self.detector.bundle
        self._count_refusal(Desired(bundle.version, bundle.sha256, ""), error, for_good=True)
        self.detector = None
        self._go_back(bundle.sha256, for_good=True)
        self._swapped = True
        self._tell(nodes)

    def _go_back(self, sha256: str, *, for_good: bool) -> None:
        """Serve the bundle before `sha256`, or none where the disk does not let us say so."""
        self._written(self.store.end_trial, sha256)
        if self._written(partial(self.store.revert, for_good=for_good)):
            self._load_installed()
        else:
            self._set(None)

    def _written(self, step: Callable[..., object], *arguments: str) -> bool:
        """Do a step of the store; a full or broken disk is told, and stops no detection."""
        try:
            step(*arguments)
        except OSError as e:
            self._log.warning("bundle_store_not_written", where=str(self.store.directory), error=str(e))
            return False
        return True

    def _load_installed(self) -> None:
        """Serve the installed bundle, or the one before it when it no longer passes."""
        current = self.store.current
        if current is None:
            self._set(None)
            return
        try:
            bundle = self.store.open_current(self._trusted_keys)
            assert bundle is not None
            on_trial = self.store.on_trial(bundle.sha256)
            if on_trial:
                self._written(self.store.begin_trial, bundle.sha256)
            proven = prove(bundle, self._runtime, self._precision)
        except BundleError as e:
            # A file that rotted may be fetched again; a bundle that this node cannot run may not.
            for_good = e.reason in _FOR_GOOD
            self._count_refusal(Desired(current.version, current.sha256, ""), e, for_good=for_good)
            self._go_back(current.sha256, for_good=for_good)
            return
        if bundle.manifest.expires_ns <= self._clock.now_ns():
            self._log.warning("bundle_expired", version=bundle.version, effect="it goes on serving")
        self._set(proven, on_trial=on_trial)

    def _set(self, proven: Proven | None, *, on_trial: bool = False) -> None:
        self._attendance.clear()
        for name in ("infomae_bundle_info", "infomae_bundle_precision", "infomae_bundle_missing_loss"):
            self._telemetry.gauge(name).clear()
        if proven is None:
            self.detector = self._trial = None
            self._log.info("no_bundle", effect="nothing is looked at until one comes")
            return
        detector, refused = proven.detector, proven.int8_refused
        self.detector, bundle = detector, detector.bundle
        if refused is not None:
            self._telemetry.counter("infomae_int8_refused_total").labels(reason=refused.reason).inc()
            self._log.warning("int8_refused", version=bundle.version, reason=refused.reason, error=str(refused))
        hop_s = next(iter(bundle.manifest.modalities.values())).hop_s
        self._trial = Trial(
            self._trial_windows if on_trial else 0,
            self._max_realtime_factor * hop_s,
            f"bundle {bundle.version}",
            before_s=self._trial.typical_s if self._trial else None,
        )
        self._trial_until_ns = self._clock.monotonic_ns() + round(_LONGEST_TRIAL_S * NS_PER_S)
        self._telemetry.gauge("infomae_bundle_info").labels(str(bundle.version), bundle.sha256).set(1)
        self._telemetry.gauge("infomae_bundle_precision").labels(kind=detector.precision).set(1)
        for modality, loss in bundle.manifest.missing_losses().items():
            self._telemetry.gauge("infomae_bundle_missing_loss").labels(kind=modality).set(loss)
        self._log.info("bundle_serves", version=bundle.version, sha256=bundle.sha256, precision=detector.precision)

    def _finish(self, desired: Desired, outcome: Prepared | BundleError) -> None:
        if isinstance(outcome, Prepared):
            try:
                self.store.activate(outcome.bundle)
            except BundleError as e:
                outcome = e
            except OSError as e:  # a full disk: the old one goes on, and it is tried again
                outcome = BundleError(f"cannot be stored: {e}", reason="download", where=str(self.store.directory))
        if isinstance(outcome, BundleError):
            self._refuse(desired, outcome)
            return
        self._refusal, self._retry_s = None, _FIRST_RETRY_S
        self._set(outcome.proven, on_trial=True)
        self._swapped = True

    def _refuse(self, desired: Desired, error: BundleError) -> None:
        retried = error.reason in _RETRIED
        self._count_refusal(desired, error, for_good=not retried)
        if retried:
            self._retry_at_ns = self._clock.monotonic_ns() + round(self._retry_s * NS_PER_S)
            self._retry_s = min(2 * self._retry_s, _LONGEST_RETRY_S)

    def _count_refusal(self, desired: Desired, error: BundleError, *, for_good: bool) -> None:
        self._telemetry.counter("infomae_bundle_rollbacks_total").labels(reason=error.reason).inc()
        self._log.warning(
            "bundle_refused", version=desired.version, sha256=desired.sha256, reason=error.reason, error=str(error)
        )
        self._refusal = (desired, error.reason)
        if for_good:
            self._refused.add(desired.sha256)

    def _serves(self, desired: Desired) -> bool:
        return self.detector is not None and self.detector.bundle.sha256 == desired.sha256

    def _is_new(self, desired: Desired, now_ns: int) -> bool:
        waiting = self._refusal is not None and self._refusal[0] == desired and now_ns < self._retry_at_ns
        return not (waiting or self._installer.busy or desired.sha256 in self._refused)

    def _desired(self, nodes: Sequence[ServedNode]) -> Desired | None:
        """The highest version that any node is told to serve."""
        found: list[Desired] = []
        for node in nodes:
            try:
                payload = node.outbox.get_state(DESIRED_STATE)
                if payload:
                    found.append(parse_desired(payload))
            except (WireError, OutboxError) as e:
                node.warn("desired_unreadable", e)
        return max(found, key=lambda desired: desired.version, default=None)

    def _tell(self, nodes: Sequence[ServedNode]) -> None:
        """Say in every node's outbox what became of the desire; the collector publishes it as `bundle/observed`."""
        version, sha256, state, reason = 0, "", "none", ""
        if self._refusal is not None:
            desired, reason = self._refusal
            version, sha256, state = desired.version, desired.sha256, "refused"
        elif self.detector is not None:
            version, sha256, state = self.detector.bundle.version, self.detector.bundle.sha256, "serving"
        observed = json.dumps(
            {
                "v": 1,
                "version": version,
                "sha256": sha256,
                "state": state,
                "reason": reason,
                "verified": state == "serving",
            }
        ).encode()
        for node in nodes:
            node.observed = observed
