"""The bounded folder of messages that were refused for good: the bytes as they came, and a JSON file beside them."""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from pathlib import Path

from infomae_stream.folders import make_folders, sync_path
from infomae_stream.telemetry import EventLog

_log = EventLog("infomae.ingest")


class DeadLetters:
    """`<folder>/<reason>-<sha256>.bin` and `.json` (reason, topic, text, time). The same message is kept once.

    Beyond `max_bytes` the oldest letters go, counted in `dropped`. Not for threads.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Makes the folder. Raises OSError."""
        self._folder = folder
        self._max_bytes = max_bytes
        self.dropped = 0
        make_folders(folder)
        self._clear_halves()
        # A letter of a process that was killed before its fsync counts as kept from now on.
        sync_path(folder)
        letters = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        self._sizes: OrderedDict[str, int] = OrderedDict((path.stem, self._size(path.stem)) for path in letters)
        self._bytes = sum(self._sizes.values())

    def keep(self, topic: str, payload: bytes, reason: str, text: str, received_ns: int) -> bool:
        """Write a letter, on disk when this returns; False when it is there already. Raises OSError.

        A letter larger than the whole folder may be is counted as dropped and not written.
        """
        digest = hashlib.sha256(topic.encode() + b"\0" + payload).hexdigest()
        name = f"{reason}-{digest[:32]}"
        if name in self._sizes:
            return False
        note = {"reason": reason, "topic": topic, "text": text, "bytes": len(payload), "received_ns": received_ns}
        sidecar = json.dumps(note).encode()
        size = len(payload) + len(sidecar)
        if size > self._max_bytes:
            self.dropped += 1
            _log.warning("dead_letter_dropped", reason=reason, topic=topic[:200], bytes=len(payload))
            return True
        while self._bytes + size > self._max_bytes:
            self._drop_oldest()
        self._write(f"{name}.bin", payload)
        self._write(f"{name}.json", sidecar)
        # The node stops sending it on our word, so the names must be durable too, and not only the bytes.
        sync_path(self._folder)
        self._sizes[name] = size
        self._bytes += size
        return True

    def __len__(self) -> int:
        return len(self._sizes)

    def _write(self, name: str, content: bytes) -> None:
        temporary = self._folder / f"{name}.tmp"
        try:
            with temporary.open("wb") as f:
                f.write(content)
                f.flush()
                os.fsync(f.fileno())
            temporary.replace(self._folder / name)
        finally:
            temporary.unlink(missing_ok=True)

    def _clear_halves(self) -> None:
        """Remove temporaries, and of a letter that a power cut halved what is there: it was never acknowledged."""
        for stray in self._folder.glob("*.tmp"):
            stray.unlink()
        for path in [*self._folder.glob("*.json"), *self._folder.glob("*.bin")]:
            if not (path.with_suffix(".json").exists() and path.with_suffix(".bin").exists()):
                path.unlink()

    def _drop_oldest(self) -> None:
        name, size = self._sizes.popitem(last=False)
        for suffix in (".json", ".bin"):
            (self._folder / f"{name}{suffix}").unlink(missing_ok=True)
        self._bytes -= size
        self.dropped += 1

    def _size(self, name: str) -> int:
        paths = [self._folder / f"{name}{suffix}" for suffix in (".json", ".bin")]
        return sum(path.stat().st_size for path in paths if path.exists())
