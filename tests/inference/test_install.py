from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from inference.install import Desired, fetch, parse_desired, prepare
from inference.runtimes import make_runtime
from infomae_stream.bundle import BundleInfo
from infomae_stream.bundle_store import BundleStore
from infomae_stream.errors import BundleError, WireError
from infomae_stream.golden import Golden
from tests.tiny_bundle import PUBLIC_KEY, TinyBundle

NOW_NS = 1_700_000_000 * 10**9
RUNTIME = make_runtime("onnx", threads=1)


class BundleServer(http.server.ThreadingHTTPServer):
    """Serves `content` with ranges; breaks off after `cut` bytes of an answer when it is set, once."""

    content = b""
    cut: int | None = None

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.ranges: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/bundle.zip"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: BundleServer

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.ranges.append(wanted)
        if self.path != "/bundle.zip":
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        if start >= len(self.server.content):
            self.send_error(416)
            return
        body = self.server.content[start:]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cut, self.server.cut = self.server.cut, None
        self.wfile.write(body[:cut])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[BundleServer]:
    with BundleServer() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> BundleInfo:
    return TinyBundle(version=4).write(tmp_path_factory.mktemp("made") / "b.zip")


def reason_of(desired: Desired, store: BundleStore) -> str:
    with pytest.raises(BundleError) as caught:
        prepare(desired, store, [PUBLIC_KEY], RUNTIME, NOW_NS)
    return caught.value.reason


def test_a_bundle_comes_by_http_or_file_and_passes(server: BundleServer, made: BundleInfo, tmp_path: Path) -> None:
    server.content = made.path.read_bytes()
    for name, url in (("http", server.url), ("file", made.path.as_uri())):
        prepared = prepare(Desired(4, made.sha256, url), BundleStore(tmp_path / name), [PUBLIC_KEY], RUNTIME, NOW_NS)
        assert prepared.bundle.sha256 == prepared.proven.detector.bundle.sha256 == made.sha256


def test_a_broken_download_goes_on_where_it_ended(server: BundleServer, made: BundleInfo, tmp_path: Path) -> None:
    server.content, server.cut = made.path.read_bytes(), 1000
    store = BundleStore(tmp_path)
    desired = Desired(4, made.sha256, server.url)
    assert reason_of(desired, store) == "download"
    assert prepare(desired, BundleStore(tmp_path), [PUBLIC_KEY], RUNTIME, NOW_NS).bundle.version == 4
    # A third time, all of it is there: the server has nothing to add, and the hash decides.
    assert prepare(desired, store, [PUBLIC_KEY], RUNTIME, NOW_NS).bundle.version == 4
    assert server.ranges == [None, "bytes=1000-", f"bytes={made.size}-"]


def test_other_bytes_than_were_desired_are_refused_and_forgotten(
    server: BundleServer, made: BundleInfo, tmp_path: Path
) -> None:
    good = made.path.read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    server.content = bytes(flipped)
    store = BundleStore(tmp_path)
    assert reason_of(Desired(4, made.sha256, server.url), store) == "hash"
    server.content = good
    assert prepare(Desired(4, made.sha256, server.url), store, [PUBLIC_KEY], RUNTIME, NOW_NS).bundle.version == 4


def test_what_is_not_there_is_a_download_that_failed(server: BundleServer, made: BundleInfo, tmp_path: Path) -> None:
    store = BundleStore(tmp_path)
    for url in (server.url.replace("bundle", "nothing"), (tmp_path / "none.zip").as_uri(), "http://127.0.0.1:1/x"):
        assert reason_of(Desired(4, made.sha256, url), store) == "download"


def test_another_version_than_was_announced_is_refused(made: BundleInfo, tmp_path: Path) -> None:
    assert reason_of(Desired(5, made.sha256, made.path.as_uri()), BundleStore(tmp_path)) == "contract"


def test_golden_vectors_decide_before_anything_is_swapped(made: BundleInfo, tmp_path: Path) -> None:
    tiny = TinyBundle(version=5)
    scores = {name: s[:, ::-1] for name, s in tiny.golden.scores.items()}
    info = tiny.write(tmp_path / "bad.zip", golden_npz=Golden(tiny.golden.windows, scores).dump())
    store = BundleStore(tmp_path / "store")
    store.activate(prepare(Desired(4, made.sha256, made.path.as_uri()), store, [PUBLIC_KEY], RUNTIME, NOW_NS).bundle)
    assert reason_of(Desired(5, info.sha256, info.path.as_uri()), store) == "golden"
    assert store.current is not None and store.current.version == store.highest_version == 4


def test_too_large_a_download_is_cut_short(server: BundleServer, tmp_path: Path) -> None:
    class Endless:
        length = None

        def read(self, _: int) -> bytes:
            return b"\0" * 10_000_000

    from inference.install import _copy

    with open(tmp_path / "out", "wb") as out, pytest.raises(BundleError) as caught:
        _copy(Endless(), out, 0, "test")  # type: ignore[arg-type]
    assert caught.value.reason == "size"
    server.content = b"x"
    fetch(server.url, tmp_path / "small")
    assert (tmp_path / "small").read_bytes() == b"x"


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b'{"v":1}',
        b'{"v":1,"version":0,"sha256":"%s","url":"http://h/b"}' % (b"a" * 64),
        b'{"v":1,"version":true,"sha256":"%s","url":"http://h/b"}' % (b"a" * 64),
        b'{"v":1,"version":1,"sha256":"../../x","url":"http://h/b"}',
        b'{"v":1,"version":1,"sha256":"%s","url":"ftp://h/b"}' % (b"a" * 64),
        b'{"v":1,"version":1,"sha256":"%s","url":7}' % (b"a" * 64),
    ],
)
def test_a_desire_that_cannot_be_read_is_refused(payload: bytes) -> None:
    with pytest.raises(WireError):
        parse_desired(payload)
