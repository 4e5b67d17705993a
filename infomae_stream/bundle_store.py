"""The bundles a node has: the one that serves, the one before it, and the highest version it ever accepted.

All of it hangs on one small file, `pointer.json`, that is replaced whole: a kill at any point leaves the old state or
the new one. Bundle files are named by their sha256 and are complete and synced before the pointer names them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from infomae_stream.bundle import Bundle, open_bundle, write_durably
from infomae_stream.errors import BundleError

POINTER: Final = "pointer.json"
MAX_UNCLEAN_ENDS: Final = 3
_REVERTED_KEPT: Final = 32


@dataclass(frozen=True, slots=True)
class Installed:
    version: int
    sha256: str


@dataclass(frozen=True, slots=True)
class _Pointer:
    """highest: what was ever accepted last; reverted: sha256 of bundles that failed while they served."""

    current: Installed | None = None
    previous: Installed | None = None
    highest: Installed | None = None
    reverted: tuple[str, ...] = ()


class BundleStore:
    """One folder, one writing process. Raises BundleError(structure) when the pointer file cannot be read."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "staging").mkdir(parents=True, exist_ok=True)
        self._pointer = _read_pointer(directory / POINTER)

    @property
    def current(self) -> Installed | None:
        return self._pointer.current

    @property
    def previous(self) -> Installed | None:
        return self._pointer.previous

    @property
    def highest_version(self) -> int:
        """The highest version ever accepted here; 0 before the first. Never goes down, not even by `revert`."""
        return self._pointer.highest.version if self._pointer.highest else 0

    def staging_path(self, sha256: str) -> Path:
        """Where a download of this bundle collects its bytes; it survives a restart, so that it can be resumed."""
        return self.directory / "staging" / f"{sha256}.part"

    def path(self, installed: Installed) -> Path:
        return self.directory / f"{installed.sha256}.zip"

    def check_new(self, bundle: Bundle) -> None:
        """Raises BundleError: older (also for another file under a version that is taken), or runtime (reverted)."""
        highest = self._pointer.highest
        if highest and (
            bundle.version < highest.version or (bundle.version == highest.version and bundle.sha256 != highest.sha256)
        ):
            raise BundleError(
                f"version {bundle.version} does not follow {highest.version}, which was accepted before",
                reason="older",
                where="bundle store",
                fix="release it under a higher version",
            )
        if bundle.sha256 in self._pointer.reverted:
            raise BundleError("failed while it served here before", reason="runtime", where="bundle store")

    def begin_trial(self, sha256: str) -> None:
        """Count, durably, that a process is about to run this bundle; `end_trial` or `leave_trial` takes it back.

        Raises BundleError(runtime) when 3 processes have begun and none came to an end: a graph that takes its process
        along leaves no other trace.
        """
        begun = self._begun(sha256)
        if begun >= MAX_UNCLEAN_ENDS:
            raise BundleError(
                f"{begun} processes that ran it ended without a word", reason="runtime", where="bundle store"
            )
        write_durably(self._trial(sha256), str(begun + 1).encode())

    def on_trial(self, sha256: str) -> bool:
        """Whether this bundle has still to show that it can serve."""
        return self._trial(sha256).exists()

    def leave_trial(self, sha256: str) -> None:
        """The process ends as it should; the trial goes on with the next one."""
        if self.on_trial(sha256):
            write_durably(self._trial(sha256), str(max(0, self._begun(sha256) - 1)).encode())

    def end_trial(self, sha256: str) -> None:
        """Its fate is decided."""
        self._trial(sha256).unlink(missing_ok=True)

    def _trial(self, sha256: str) -> Path:
        return self.directory / "trials" / sha256

    def _begun(self, sha256: str) -> int:
        try:
            return int(self._trial(sha256).read_bytes())
        except (FileNotFoundError, ValueError):
            return 0

    def activate(self, bundle: Bundle) -> Installed:
        """Make a verified bundle the current one, durably; the one before it is kept, older ones are deleted.

        Raises BundleError as `check_new` does.
        """
        self.check_new(bundle)
        installed = Installed(bundle.version, bundle.sha256)
        if installed == self._pointer.current:
            return installed
        write_durably(self.path(installed), bundle.content)
        self._point(replace(self._pointer, current=installed, previous=self._pointer.current, highest=installed))
        self._delete_unnamed()
        return installed

    def revert(self, *, for_good: bool = True) -> Installed | None:
        """Go back to the bundle before; return what serves now. `for_good`: never take the current one again."""
        if self._pointer.current is not None:
            reverted = self._pointer.reverted
            if for_good:
                reverted = (*reverted, self._pointer.current.sha256)[-_REVERTED_KEPT:]
            self._point(replace(self._pointer, current=self._pointer.previous, previous=None, reverted=reverted))
        return self._pointer.current

    def open_current(self, trusted_public_keys: Sequence[Ed25519PublicKey]) -> Bundle | None:
        """The serving bundle, verified anew, since storage may rot; None before the first.

        Its expiry is not looked at: it bounds how long a bundle may be installed, not how long an offline node detects.
        """
        current = self._pointer.current
        if current is None:
            return None
        path = self.path(current)
        bundle = open_bundle(path, trusted_public_keys, now_ns=0, min_version=0)
        if bundle.sha256 != current.sha256:
            raise BundleError("is not the bundle that was installed", reason="hash", where=str(path))
        return bundle

    def _point(self, pointer: _Pointer) -> None:
        write_durably(self.directory / POINTER, json.dumps({"v": 1, **asdict(pointer)}).encode())
        self._pointer = pointer

    def _delete_unnamed(self) -> None:
        """Bundles and trials that nothing names, files that a kill left half written, and downloads."""
        kept = [i for i in (self._pointer.current, self._pointer.previous) if i]
        named = {*map(self.path, kept), *(self._trial(i.sha256) for i in kept)}
        patterns = ("*.zip", ".*.tmp", "staging/*", "trials/*", "trials/.*.tmp")
        leftovers = [path for pattern in patterns for path in self.directory.glob(pattern)]
        for path in leftovers:
            if path not in named:
                path.unlink(missing_ok=True)


def _read_pointer(path: Path) -> _Pointer:
    def installed(record: dict[str, Any] | None) -> Installed | None:
        return Installed(int(record["version"]), str(record["sha256"])) if record else None

    try:
        d = json.loads(path.read_bytes())
        return _Pointer(
            installed(d["current"]), installed(d["previous"]), installed(d["highest"]), tuple(map(str, d["reverted"]))
        )
    except FileNotFoundError:
        return _Pointer()
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise BundleError(
            f"cannot be read: {e!r}",
            reason="structure",
            where=str(path),
            fix="restore it from a backup; deleting it also forgets the highest version that was accepted",
        ) from e
