"""Serves bundles to nodes: GET and HEAD of the files of one folder, by exact name, whole or by byte range.

Only names of listed plain files are served, and a request is compared with that list instead of being made into a
path: there is nothing to climb out of. One range a request (RFC 9110, section 14): what resuming a download needs.
"""

from __future__ import annotations

import re
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO, Final
from urllib.parse import unquote

from infomae_stream.telemetry import EventLog

PIECE_BYTES: Final = 65_536
TIMEOUT_S: Final = 30.0
_RANGE: Final = re.compile(r"bytes=(\d*)-(\d*)")


class BundleServer:
    """A server on threads of its own; `url` is known once it is made. Bound to loopback unless told otherwise."""

    def __init__(self, folder: Path, host: str, port: int, log: EventLog) -> None:
        handler = type("BundleHandler", (_Handler,), {"folder": folder, "log": log})
        self._server = ThreadingHTTPServer((host, port), handler)
        self._server.daemon_threads = True
        self.host, self.port = host, int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="bundle-server", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    folder: Path
    log: EventLog
    timeout = TIMEOUT_S
    protocol_version = "HTTP/1.1"
    server_version = "infomae-stream"
    sys_version = ""

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        path = self._file()
        if path is None:
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        try:
            f = path.open("rb")
        except OSError:
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        with f:
            size = path.stat().st_size
            span = _byte_range(self.headers.get("Range"), size)
            if span is None:
                self._refuse(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, f"bytes */{size}")
                return
            first, last = span
            partial = self.headers.get("Range") is not None and (first, last) != (0, size - 1)
            self.send_response(HTTPStatus.PARTIAL_CONTENT if partial else HTTPStatus.OK)
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(last - first + 1))
            self.send_header("Accept-Ranges", "bytes")
            if partial:
                self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.end_headers()
            if body:
                f.seek(first)
                self._copy(f, last - first + 1)

    def _copy(self, f: BinaryIO, n: int) -> None:
        while n > 0 and (piece := f.read(min(PIECE_BYTES, n))):
            try:
                self.wfile.write(piece)
            except (ConnectionError, TimeoutError):
                self.close_connection = True  # the node resumes where it stopped
                return
            n -= len(piece)
        if n > 0:  # the file shrank: end the connection, so that the node sees a short answer
            self.close_connection = True

    def _file(self) -> Path | None:
        name = unquote(self.path.split("?")[0]).removeprefix("/")
        try:
            names = {p.name for p in self.folder.iterdir() if p.is_file() and not p.is_symlink()}
        except OSError:
            return None
        return self.folder / name if name in names and not name.startswith(".") else None

    def _refuse(self, status: HTTPStatus, content_range: str = "") -> None:
        self.send_response(status)
        if content_range:
            self.send_header("Content-Range", content_range)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        self.log.info("bundle_request", client=self.client_address[0], request=format % args)


def _byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """First and last byte asked for; the whole file for no header or one of another unit; None when unsatisfiable."""
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None or match[0] == "bytes=-":
        return 0, size - 1
    if not match[1]:  # the last n bytes
        n = int(match[2])
        return (max(size - n, 0), size - 1) if n and size else None
    first, last = int(match[1]), int(match[2]) if match[2] else size - 1
    if match[2] and last < first:
        return 0, size - 1
    return (first, min(last, size - 1)) if first < size else None
