"""A desired bundle onto this node: fetch, verify, load, golden vectors. Nothing here changes what serves."""

from __future__ import annotations

import hashlib
import http.client
import queue
import re
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from inference.precision import Proven, Wanted, prove
from inference.runtimes import Runtime
from infomae_stream.bundle import MAX_BUNDLE_BYTES, Bundle, open_bundle
from infomae_stream.bundle_store import BundleStore
from infomae_stream.clock import Clock
from infomae_stream.errors import BundleError, WireError
from infomae_stream.wire import load_json

FETCH_TIMEOUT_S: Final = 10.0
_BLOCK_BYTES: Final = 65_536


@dataclass(frozen=True, slots=True)
class Desired:
    """What the hub wants this node to serve."""

    version: int
    sha256: str
    url: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """A bundle that may serve now, on trial, and its loaded graphs."""

    bundle: Bundle
    proven: Proven


def parse_desired(payload: bytes) -> Desired:
    """Raises WireError(schema) for anything but version, sha256 and a http, https or file url."""
    m = load_json(payload)
    version, sha256, url = m.get("version"), m.get("sha256"), m.get("url")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise WireError("version is not a positive integer", reason="schema", where="bundle/desired")
    if not isinstance(sha256, str) or not re.fullmatch("[0-9a-f]{64}", sha256):
        raise WireError("sha256 is not 64 hexadecimal digits", reason="schema", where="bundle/desired")
    if (
        not isinstance(url, str)
        or len(url) > 2000
        or urllib.parse.urlsplit(url).scheme not in ("http", "https", "file")
    ):
        raise WireError("url is not http, https or file", reason="schema", where="bundle/desired")
    return Desired(version, sha256, url)


def fetch(url: str, target: Path, *, timeout_s: float = FETCH_TIMEOUT_S) -> None:
    """Bring `url` to `target`, going on where an earlier try ended.

    Raises BundleError: download (the rest may come with the next try) or size.
    """
    try:
        if urllib.parse.urlsplit(url).scheme == "file":
            source = Path(urllib.request.url2pathname(urllib.parse.urlsplit(url).path))
            with open(source, "rb") as f, open(target, "wb") as out:
                _copy(f, out, 0, url)
            return
        have = target.stat().st_size if target.exists() else 0
        request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            resumed = response.status == http.client.PARTIAL_CONTENT
            with open(target, "ab" if resumed else "wb") as out:
                _copy(response, out, have if resumed else 0, url)
    except urllib.error.HTTPError as e:
        e.close()
        if e.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # all of it is here; the hash decides
        raise BundleError(f"the server says {e.code} {e.reason}", reason="download", where=url) from e
    except (OSError, http.client.HTTPException, ValueError) as e:
        raise BundleError(f"cannot be fetched: {e}", reason="download", where=url, fix="it is tried again") from e


def _copy(source: BinaryIO | http.client.HTTPResponse, out: BinaryIO, have: int, where: str) -> None:
    while block := source.read(_BLOCK_BYTES):
        have += len(block)
        if have > MAX_BUNDLE_BYTES:
            raise BundleError(f"larger than {MAX_BUNDLE_BYTES} bytes", reason="size", where=where)
        out.write(block)
    missing = getattr(source, "length", None)
    if missing:
        raise BundleError(f"{missing} bytes are missing", reason="download", where=where, fix="it is tried again")


def prepare(
    desired: Desired,
    store: BundleStore,
    trusted_keys: Sequence[Ed25519PublicKey],
    runtime: Runtime,
    now_ns: int,
    precision: Wanted = "auto",
) -> Prepared:
    """Fetch `desired` into the store's staging folder and return what passed every check; its trial has begun.

    Raises BundleError with a reason of bundle.REASONS.
    """
    staged = store.staging_path(desired.sha256)
    fetch(desired.url, staged)
    with open(staged, "rb") as f:
        sha256 = hashlib.file_digest(f, "sha256").hexdigest()
    if sha256 != desired.sha256:
        staged.unlink()
        raise BundleError("what was fetched has another sha256", reason="hash", where=desired.url)
    bundle = open_bundle(staged, trusted_keys, now_ns=now_ns, min_version=store.highest_version)
    if bundle.version != desired.version:
        raise BundleError(f"is version {bundle.version}, not {desired.version}", reason="contract", where=desired.url)
    store.check_new(bundle)
    try:
        store.begin_trial(bundle.sha256)
    except OSError as e:
        raise BundleError(f"cannot be stored: {e}", reason="download", where=str(store.directory)) from e
    try:
        return Prepared(bundle, prove(bundle, runtime, precision))
    except BundleError:
        store.end_trial(bundle.sha256)
        raise


class Installer:
    """Runs `prepare` on a thread of its own, one at a time, so that detection goes on meanwhile."""

    def __init__(
        self,
        store: BundleStore,
        trusted_keys: Sequence[Ed25519PublicKey],
        runtime: Runtime,
        clock: Clock,
        precision: Wanted,
    ) -> None:
        self._store = store
        self._trusted_keys = trusted_keys
        self._runtime = runtime
        self._clock = clock
        self._precision = precision
        self._results: queue.SimpleQueue[tuple[Desired, Prepared | Exception]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        return self._thread is not None

    def start(self, desired: Desired) -> None:
        assert self._thread is None
        self._thread = threading.Thread(target=self._run, args=(desired,), name="bundle install", daemon=True)
        self._thread.start()

    def poll(self, timeout_s: float = 0.0) -> tuple[Desired, Prepared | BundleError] | None:
        """The outcome once, else None; waits up to `timeout_s` for it. An unforeseen error of the thread is raised."""
        if self._thread is None:
            return None
        try:
            desired, outcome = self._results.get(timeout=timeout_s) if timeout_s else self._results.get_nowait()
        except queue.Empty:
            return None
        self._thread.join()
        self._thread = None
        if isinstance(outcome, (Prepared, BundleError)):
            return desired, outcome
        raise outcome

    def _run(self, desired: Desired) -> None:
        try:
            now_ns = self._clock.now_ns()
            prepared = prepare(desired, self._store, self._trusted_keys, self._runtime, now_ns, self._precision)
            self._results.put((desired, prepared))
        except Exception as e:  # noqa: BLE001 - carried to the loop, which raises it again
            self._results.put((desired, e))
