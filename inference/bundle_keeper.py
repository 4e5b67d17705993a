"""Which bundle serves: loads the installed one, installs what the hub desires, reverts what fails, tells the hub."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from inference.detector import Detector, check_golden
from inference.hosted_node import DESIRED_STATE, HostedNode
from inference.install import Desired, Installer, parse_desired
from inference.runtimes import Runtime
from infomae_stream.bundle_store import BundleStore
from infomae_stream.clock import NS_PER_S, Clock
from infomae_stream.errors import BundleError, OutboxError, WireError
from infomae_stream.telemetry import EventLog, Telemetry

_CHECK_S: Final = 1.0
_FIRST_RETRY_S: Final = 2.0
_LONGEST_RETRY_S: Final = 60.0
_RETRIED: Final = ("download", "hash")  # the next try may bring other bytes
_FOR_GOOD: Final = ("golden", "runtime", "contract", "not_finite")  # of the bundle itself, not of the file on this disk


class BundleKeeper:
    """The nodes of one process share one bundle: the highest version that any of them is told to serve.

    `detector` is what serves, None before the first bundle. A bundle that is refused leaves it as it was.
    """

    def __init__(
        self,
        store: BundleStore,
        trusted_keys: Sequence[Ed25519PublicKey],
        runtime: Runtime,
        clock: Clock,
        telemetry: Telemetry,
        log: EventLog,
    ) -> None:
        self.store = store
        self.detector: Detector | None = None
        self._trusted_keys = trusted_keys
        self._runtime = runtime
        self._clock = clock
        self._telemetry = telemetry
        self._log = log
        self._installer = Installer(store, trusted_keys, runtime, clock)
        self._checked_ns = -round(_CHECK_S * NS_PER_S)
        self._refused: set[str] = set()  # sha256 of bundles that this process does not try again
        self._retry_at_ns = 0
        self._retry_s = _FIRST_RETRY_S
        self._refusal: tuple[Desired, str] | None = None
        self._swapped = False
        self._load_installed()

    def tend(self, nodes: Sequence[HostedNode]) -> bool:
        """Look for a finished install and, once a second, for a new desire; True when `detector` has changed."""
        outcome = self._installer.poll()
        if outcome is not None:
            self._finish(*outcome)
        now_ns = self._clock.monotonic_ns()
        if now_ns - self._checked_ns >= _CHECK_S * NS_PER_S:
            self._checked_ns = now_ns
            desired = self._desired(nodes)
            if desired is not None and self._serves(desired):
                self._refusal = None  # the hub went back to what serves
            elif desired is not None and self._is_new(desired, now_ns):
                self._log.info("bundle_install_begins", version=desired.version, sha256=desired.sha256, url=desired.url)
                self._installer.start(desired)
        self._tell(nodes)
        swapped, self._swapped = self._swapped, False
        return swapped

    def wait(self, timeout_s: float, nodes: Sequence[HostedNode]) -> bool:
        """As `tend`, but wait for an install that is under way."""
        outcome = self._installer.poll(timeout_s)
        if outcome is not None:
            self._finish(*outcome)
        return self.tend(nodes)

    def revert(self, error: BundleError, nodes: Sequence[HostedNode]) -> None:
        """The serving bundle failed: go back to the one before it, or to none."""
        assert self.detector is not None
        bundle = self.detector.bundle
        self._count_refusal(Desired(bundle.version, bundle.sha256, ""), error, for_good=True)
        self.detector = None
        self.store.revert()
        self._load_installed()
        self._swapped = True
        self._tell(nodes)

    def _load_installed(self) -> None:
        """Serve the installed bundle, or the one before it when it no longer passes."""
        while (current := self.store.current) is not None:
            try:
                bundle = self.store.open_current(self._trusted_keys)
                assert bundle is not None
                detector = Detector(bundle, self._runtime)
                check_golden(detector)
            except BundleError as e:
                # A file that rotted may be fetched again; a bundle that this node cannot run may not.
                for_good = e.reason in _FOR_GOOD
                self._count_refusal(Desired(current.version, current.sha256, ""), e, for_good=for_good)
                self.store.revert(for_good=for_good)
                continue
            if bundle.manifest.expires_ns <= self._clock.now_ns():
                self._log.warning("bundle_expired", version=bundle.version, effect="it goes on serving")
            self._set(detector)
            return
        self._set(None)

    def _set(self, detector: Detector | None) -> None:
        self.detector = detector
        gauge = self._telemetry.gauge("infomae_bundle_info")
        gauge.clear()
        if detector is None:
            self._log.info("no_bundle", effect="nothing is looked at until one comes")
            return
        gauge.labels(version=str(detector.bundle.version), sha256=detector.bundle.sha256).set(1)
        self._log.info("bundle_serves", version=detector.bundle.version, sha256=detector.bundle.sha256)

    def _finish(self, desired: Desired, outcome: Detector | BundleError) -> None:
        if isinstance(outcome, Detector):
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
        self._set(outcome)
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

    def _desired(self, nodes: Sequence[HostedNode]) -> Desired | None:
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

    def _tell(self, nodes: Sequence[HostedNode]) -> None:
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
