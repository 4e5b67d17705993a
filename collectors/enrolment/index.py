"""What an authority has signed and revoked: a file of JSON lines that only grows, each line synced to disk."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from infomae_stream.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Issued:
    """One certificate. `name`: its common name; `key`: sha256 of its public key."""

    name: str
    serial: int
    key: str
    issued: datetime
    expires: datetime
    revoked: datetime | None = None

    def state(self, now: datetime) -> str:
        """ "valid", "expired" or "revoked"."""
        if self.revoked is not None:
            return "revoked"
        return "valid" if now < self.expires else "expired"


class Index:
    """Raises ConfigError when the file holds a line that is not one of its own; a torn last line is left out."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._issued: dict[int, Issued] = {}
        self._revoked: dict[int, datetime] = {}
        self.revisions = 0  # how many lines there are: grows with every change
        for number, line in enumerate(_whole_lines(path), 1):
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError) as e:
                raise ConfigError(
                    f"line {number} cannot be read: {e}", where=str(path), fix="restore it from a backup"
                ) from e

    def add_issued(self, issued: Issued) -> None:
        """Durable when this returns. Raises OSError."""
        self._append(
            {
                "event": "issued",
                "name": issued.name,
                "serial": f"{issued.serial:x}",
                "key": issued.key,
                "issued": issued.issued.isoformat(),
                "expires": issued.expires.isoformat(),
            }
        )

    def add_revoked(self, serial: int, at: datetime) -> None:
        """Durable when this returns. Raises OSError."""
        self._append({"event": "revoked", "serial": f"{serial:x}", "at": at.isoformat()})

    def is_revoked(self, serial: int) -> bool:
        return serial in self._revoked

    def revoked(self) -> Iterator[tuple[int, datetime]]:
        """(serial, when) of all revoked certificates, in the order of revocation."""
        yield from self._revoked.items()

    def certificates(self, name: str = "") -> list[Issued]:
        """Certificates of `name`, or all, in the order of issue."""
        found = [c for c in self._issued.values() if not name or c.name == name]
        return [Issued(c.name, c.serial, c.key, c.issued, c.expires, self._revoked.get(c.serial)) for c in found]

    def _append(self, line: dict[str, Any]) -> None:
        whole = sum(len(kept) + 1 for kept in _whole_lines(self._path))
        with open(os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as f:
            f.truncate(whole)
            f.seek(whole)
            f.write(json.dumps(line).encode() + b"\n")
            f.flush()
            os.fsync(f.fileno())
        self._take(line)

    def _take(self, line: dict[str, Any]) -> None:
        serial = int(line["serial"], 16)
        if line["event"] == "issued":
            issued, expires = _moment(line["issued"]), _moment(line["expires"])
            self._issued[serial] = Issued(line["name"], serial, line["key"], issued, expires)
        elif line["event"] == "revoked":
            self._revoked.setdefault(serial, _moment(line["at"]))
        else:
            raise ValueError(f"event {line['event']!r}")
        self.revisions += 1


def _whole_lines(path: Path) -> list[bytes]:
    """Lines that end; a write that a power cut tore has no end, and what it spoke of was never handed out."""
    if not path.exists():
        return []
    *lines, _torn = path.read_bytes().split(b"\n")
    return lines


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment.astimezone(UTC)
