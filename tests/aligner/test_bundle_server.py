from __future__ import annotations

import http.client
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from aligner.bundle_server import BundleServer
from infomae_stream.telemetry import EventLog
from tests.waiting import PATIENCE_S

CONTENT = bytes(range(256)) * 700  # several pieces


@pytest.fixture
def server(tmp_path: Path) -> Iterator[BundleServer]:
    folder = tmp_path / "bundles"
    folder.mkdir()
    (folder / "bundle-000001.zip").write_bytes(CONTENT)
    (folder / ".hidden").write_text("no")
    (folder / "sub").mkdir()
    (folder / "sub" / "inner.zip").write_text("no")
    (tmp_path / "secret.pem").write_text("no")
    os.symlink(tmp_path / "secret.pem", folder / "link.zip")
    made = BundleServer(folder, "127.0.0.1", 0, EventLog("test"))
    yield made
    made.close()


def get(
    server: BundleServer, path: str, byte_range: str = "", method: str = "GET"
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=PATIENCE_S)
    try:
        connection.request(method, path, headers={"Range": byte_range} if byte_range else {})
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def test_a_whole_file_comes_with_its_length(server: BundleServer) -> None:
    status, headers, body = get(server, "/bundle-000001.zip")
    assert (status, body) == (200, CONTENT)
    assert headers["accept-ranges"] == "bytes" and headers["content-length"] == str(len(CONTENT))
    assert get(server, "/bundle-000001.zip", method="HEAD")[2] == b""


@pytest.mark.parametrize(
    ("asked", "first", "end"),
    [
        ("bytes=0-99", 0, 100),
        ("bytes=100000-", 100_000, len(CONTENT)),
        ("bytes=-50", len(CONTENT) - 50, len(CONTENT)),
        (f"bytes=10-{10**9}", 10, len(CONTENT)),
    ],
)
def test_a_download_can_be_resumed_anywhere(server: BundleServer, asked: str, first: int, end: int) -> None:
    status, headers, body = get(server, "/bundle-000001.zip", asked)
    assert (status, body) == (206, CONTENT[first:end])
    assert headers["content-range"] == f"bytes {first}-{end - 1}/{len(CONTENT)}"


def test_a_range_past_the_end_says_how_long_the_file_is(server: BundleServer) -> None:
    status, headers, _ = get(server, "/bundle-000001.zip", f"bytes={len(CONTENT)}-")
    assert status == 416 and headers["content-range"] == f"bytes */{len(CONTENT)}"


@pytest.mark.parametrize("asked", ["bytes=9-3", "lines=1-2", "bytes=1-2,5-6", "bytes=-", "bytes=a-b"])
def test_a_range_that_means_nothing_gets_the_whole_file(server: BundleServer, asked: str) -> None:
    assert get(server, "/bundle-000001.zip", asked)[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.pem",
        "/%2e%2e/secret.pem",
        "/..%2fsecret.pem",
        "//etc/passwd",
        "/sub/inner.zip",
        "/sub",
        "/link.zip",
        "/.hidden",
        "/",
        "/bundle-000001.zip/",
        "/bundle-000001.zip%00",
        "/./bundle-000001.zip",
        "/none.zip",
    ],
)
def test_only_files_of_the_folder_are_served_and_only_by_their_name(server: BundleServer, path: str) -> None:
    status, _, body = get(server, path)
    assert (status, body) == (404, b"")


def test_a_client_that_hangs_up_harms_nobody(server: BundleServer) -> None:
    with socket.create_connection((server.host, server.port)) as s:
        s.sendall(b"GET /bundle-000001.zip HTTP/1.1\r\nHost: x\r\n\r\n")
    assert get(server, "/bundle-000001.zip")[0] == 200


def test_it_binds_to_what_it_is_told_and_tells_its_address(server: BundleServer) -> None:
    assert server.url == f"http://127.0.0.1:{server.port}"
