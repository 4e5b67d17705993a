from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from infomae_stream.bundle import (
    canonical_json,
    generate_keys,
    load_private_key,
    load_public_key,
    open_bundle,
    read_bundle,
    save_keys,
    write_bundle,
)
from infomae_stream.bundle_archive import pack, unpack
from infomae_stream.errors import BundleError, ConfigError
from infomae_stream.golden import Golden
from infomae_stream.onnx_weights import check_weights
from tests.tiny_bundle import CLASSES, PRIVATE_KEY, PUBLIC_KEY, TinyBundle, head_graph, member_name

NOW_NS = 1_700_000_000 * 10**9


@pytest.fixture(scope="module")
def tiny() -> TinyBundle:
    return TinyBundle(version=3, int8=True)


@pytest.fixture(scope="module")
def data(tiny: TinyBundle, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("bundle") / "b.zip"
    tiny.write(path)
    return path.read_bytes()


def reason_of(data: bytes, *, now_ns: int = NOW_NS, min_version: int = 0) -> str:
    with pytest.raises(BundleError) as caught:
        read_bundle(data, [PUBLIC_KEY], now_ns=now_ns, min_version=min_version, where="test")
    return caught.value.reason


def repacked(data: bytes, **changed: bytes | None) -> bytes:
    """The same archive with members replaced, or left out (None), unsigned."""
    files = {member.name: member.content for member in unpack(data, "test")}
    for name, content in changed.items():
        files.pop(member_name(name)) if content is None else files.update({member_name(name): content})
    return pack(files)


def resigned(tiny: TinyBundle, manifest: dict[str, object], files: dict[str, bytes]) -> bytes:
    """An archive signed with the trusted key, whatever it holds: what a broken release would make."""
    entries = {n: {"sha256": hashlib.sha256(c).hexdigest(), "size": len(c)} for n, c in files.items()}
    content = canonical_json({**tiny.fields, "format": 1, "files": entries, **manifest})
    signature = PRIVATE_KEY.sign(content)
    return pack({"manifest.json": content, "manifest.sig": signature, **{name: files[name] for name in sorted(files)}})


def test_what_was_written_opens_again(tiny: TinyBundle, tmp_path: Path) -> None:
    info = tiny.write(tmp_path / "b.zip")
    bundle = open_bundle(info.path, [PUBLIC_KEY], now_ns=NOW_NS, min_version=3)
    assert (bundle.version, bundle.classes) == (3, CLASSES)
    assert bundle.sha256 == info.sha256 == hashlib.sha256(info.path.read_bytes()).hexdigest()
    assert dict(bundle.files) == tiny.files()
    assert set(bundle.front_ends) == {"phone_imu", "watch_imu"}
    np.testing.assert_array_equal(bundle.golden.scores["all"], tiny.golden.scores["all"])


def test_a_bundle_of_the_first_format_still_loads() -> None:
    old = TinyBundle(version=3)
    data = resigned(old, {"format": 1}, old.files())
    manifest = read_bundle(data, [PUBLIC_KEY], now_ns=NOW_NS, min_version=0, where="test").manifest
    assert not manifest.has_int8 and manifest.missing_losses() == {}
    assert manifest.modalities["phone_imu"].graphs == ("encoder_phone_imu.onnx",)


def test_what_a_missing_modality_costs_stands_in_the_manifest() -> None:
    tiny = TinyBundle()
    subsets = [
        {"modalities": ["phone_imu"], "macro_f1": 0.5, "windows": 40},
        {"modalities": ["watch_imu", "phone_imu"], "macro_f1": 0.875, "windows": 40},
    ]
    data = resigned(tiny, {"subsets": subsets}, tiny.files())
    manifest = read_bundle(data, [PUBLIC_KEY], now_ns=NOW_NS, min_version=0, where="test").manifest
    assert manifest.missing_losses() == {"watch_imu": 0.375}
    for bad in ([{**subsets[0], "modalities": ["radar"]}], [subsets[0], subsets[0]], [{**subsets[0], "macro_f1": 1.5}]):
        assert reason_of(resigned(tiny, {"subsets": bad}, tiny.files())) == "contract"


def test_int8_graphs_are_there_for_all_modalities_or_none_and_have_their_own_names(tiny: TinyBundle) -> None:
    half = TinyBundle(int8=True)
    half.fields["modalities"]["watch_imu"]["encoder_int8"] = None
    files = {name: content for name, content in half.files().items() if name != "encoder_watch_imu.int8.onnx"}
    assert reason_of(resigned(half, {}, files)) == "contract"
    swapped = TinyBundle(int8=True)
    names = {name: f"encoder_{name}.int8.onnx" for name in ("phone_imu", "watch_imu")}
    swapped.fields["modalities"]["phone_imu"]["encoder_int8"] = names["watch_imu"]
    swapped.fields["modalities"]["watch_imu"]["encoder_int8"] = names["phone_imu"]
    assert reason_of(resigned(swapped, {}, swapped.files())) == "contract"


def test_any_zip_tool_opens_it(data: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        assert archive.namelist()[:2] == ["manifest.json", "manifest.sig"]


def test_the_same_parts_make_the_same_bytes(tiny: TinyBundle, data: bytes, tmp_path: Path) -> None:
    tiny.write(tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == data


def test_one_flipped_bit_anywhere_is_refused(data: bytes) -> None:
    rng = np.random.default_rng(0)
    # Every byte of every header and of the directory, and a sample of each member's content.
    places: set[int] = set()
    at = 0
    for member in unpack(data, "test"):
        start = at + 30 + len(member.name)
        places |= set(range(at, start)) | {start, start + len(member.content) - 1}
        places |= {int(p) for p in rng.integers(start, start + len(member.content), 12)}
        at = start + len(member.content)
    places |= set(range(at, len(data)))
    reasons = set()
    for place in sorted(places):
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(rng.integers(8))
        reasons.add(reason_of(bytes(flipped)))
    assert {"signature", "hash", "structure", "path"} <= reasons


def test_a_flipped_weight_is_named_as_hash_and_a_flipped_manifest_as_signature(data: bytes) -> None:
    for name, reason in (
        ("head.onnx", "hash"),
        ("encoder_phone_imu.int8.onnx", "hash"),
        ("manifest.json", "signature"),
        ("manifest.sig", "signature"),
    ):
        content = bytearray(next(m.content for m in unpack(data, "test") if m.name == name))
        content[len(content) // 2] ^= 1
        assert reason_of(repacked(data, **{name.replace(".", "_"): bytes(content)})) == reason


def test_every_truncation_is_refused(data: bytes) -> None:
    cuts = [0, 1, 3, 4, 29, 30, 40, len(data) // 2, len(data) - 23, len(data) - 22, len(data) - 1]
    assert {reason_of(data[:cut]) for cut in cuts} <= {"truncated", "structure"}
    assert reason_of(data[: len(data) // 2]) == reason_of(data[:-1]) == "truncated"


def test_bytes_before_or_after_are_refused(data: bytes) -> None:
    assert reason_of(data + b"\0") == reason_of(b"\0" + data) == reason_of(data + data) == "structure"


def test_another_key_is_refused(data: bytes, tiny: TinyBundle, tmp_path: Path) -> None:
    stranger, stranger_public = generate_keys()
    info = write_bundle(tmp_path / "b.zip", tiny.fields, tiny.files(), stranger)
    assert reason_of(info.path.read_bytes()) == "signature"
    assert open_bundle(info.path, [PUBLIC_KEY, stranger_public], now_ns=NOW_NS, min_version=0).version == 3
    with pytest.raises(BundleError, match="0 trusted keys"):
        read_bundle(data, [], now_ns=NOW_NS, min_version=0, where="test")


def test_older_and_expired_are_refused(data: bytes, tiny: TinyBundle) -> None:
    assert reason_of(data, min_version=4) == "older"
    assert reason_of(data, now_ns=tiny.fields["expires_ns"]) == "expired"


@pytest.mark.parametrize("name", ["../head.onnx", "/etc/passwd", "a/b.onnx", "..", "HEAD.onnx", "héad.onnx", "a\\b"])
def test_path_tricks_are_refused(data: bytes, name: str) -> None:
    with pytest.raises(BundleError) as caught:
        pack({name: b""})
    assert caught.value.reason == "path"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
        info.create_system = 0
        archive.writestr(info, b"x")
    assert reason_of(buffer.getvalue()) in ("path", "structure")


def test_compressed_streamed_and_doubled_members_are_refused(data: bytes) -> None:
    members = {m.name: m.content for m in unpack(data, "test")}
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED)
    assert reason_of(bomb.getvalue()) == "structure"

    class Doubled(dict[str, bytes]):
        def items(self) -> list[tuple[str, bytes]]:  # type: ignore[override]
            return [*super().items(), ("head.onnx", members["head.onnx"])]

    with pytest.raises(BundleError, match="stands in it twice"):
        read_bundle(pack(Doubled(members)), [PUBLIC_KEY], now_ns=NOW_NS, min_version=0, where="test")


def test_a_checksum_that_zip_tools_would_reject_is_refused(data: bytes) -> None:
    crc = struct.pack("<I", zlib.crc32(next(m.content for m in unpack(data, "test") if m.name == "head.onnx")))
    assert data.count(crc) == 2  # in the member's header and in the directory
    assert reason_of(data.replace(crc, b"\0\0\0\0")) == "structure"


def test_extra_missing_and_reordered_members_are_refused(data: bytes) -> None:
    assert reason_of(repacked(data, extra_bin=b"x")) == "structure"
    assert reason_of(repacked(data, head_onnx=None)) == "structure"
    assert reason_of(repacked(data, manifest_sig=None)) == "structure"
    members = {m.name: m.content for m in unpack(data, "test")}
    assert reason_of(pack(dict(reversed(members.items())))) == "structure"


def test_too_large_is_refused_before_it_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "large.zip"
    with open(path, "wb") as f:
        f.truncate(256_000_001)
    with pytest.raises(BundleError) as caught:
        open_bundle(path, [PUBLIC_KEY], now_ns=NOW_NS, min_version=0)
    assert caught.value.reason == "size"


@pytest.mark.parametrize(
    "change",
    [
        {"version": 0},
        {"format": 3},
        {"surprise": 1},
        {"classes": ["one"]},
        {"classes": ["one", "one", "two"]},
        {"classes": ["one", "two", "../three"]},
        {"thresholds": {"unknown": 0.5}},
    ],
)
def test_a_signed_manifest_against_the_schema_is_refused(tiny: TinyBundle, change: dict[str, object]) -> None:
    assert reason_of(resigned(tiny, change, tiny.files())) == "contract"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rate_hz", 50.0),
        ("window_s", 1.0),
        ("hop_s", 0.25),
        ("dim", 7),
        ("channels", ["acc_x"]),
        ("units", ["g"]),
        ("kind", "teeth"),
        ("encoder", "head.onnx"),
        ("encoder", "../encoder_phone_imu.onnx"),
        ("front_end", {}),
    ],
)
def test_a_contract_that_does_not_fit_itself_is_refused(key: str, value: object) -> None:
    tiny = TinyBundle()
    tiny.fields["modalities"]["phone_imu"][key] = value
    assert reason_of(resigned(tiny, {}, tiny.files())) in ("contract", "structure")


def test_the_writer_refuses_what_a_node_would_refuse(tiny: TinyBundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError) as caught:
        tiny.write(tmp_path / "b.zip", head_onnx=head_graph(np.full((8, 3), np.nan, dtype=np.float32)))
    assert caught.value.reason == "not_finite"
    assert list(tmp_path.iterdir()) == []


def test_nan_in_the_manifest_is_refused(tiny: TinyBundle) -> None:
    fields = {**tiny.fields, "format": 1, "files": {}, "lineage": {"loss": float("nan")}}
    content = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    data = pack({"manifest.json": content, "manifest.sig": PRIVATE_KEY.sign(content)})
    assert reason_of(data) == "not_finite"


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_bad_weights_are_found_in_every_float_type(kind: type, bad: float) -> None:
    values = np.ones(5, dtype=kind)
    assert check_weights(_graph([numpy_helper.from_array(values, "w")]), "w") == 5
    values[3] = bad
    with pytest.raises(BundleError) as caught:
        check_weights(_graph([numpy_helper.from_array(values, "w")]), "w")
    assert caught.value.reason == "not_finite"


def test_bad_weights_are_found_outside_raw_initializers() -> None:
    nan = float("nan")
    listed = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, nan])
    constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.array([nan], np.float32)))
    attribute = helper.make_node("LeakyRelu", ["x"], ["y"], alpha=nan)
    inner = helper.make_graph([constant], "inner", [], [])
    branch = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    bfloat = helper.make_tensor("w", TensorProto.BFLOAT16, [1], np.array([0x7FC0], np.uint16).tobytes(), raw=True)
    graphs = [_graph([listed]), _graph([], constant), _graph([], attribute), _graph([], branch), _graph([bfloat])]
    for graph in graphs:
        with pytest.raises(BundleError) as caught:
            check_weights(graph, "w")
        assert caught.value.reason == "not_finite"


def test_weights_in_another_file_are_refused() -> None:
    tensor = numpy_helper.from_array(np.ones(2, dtype=np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    with pytest.raises(BundleError) as caught:
        check_weights(_graph([tensor]), "w")
    assert caught.value.reason == "path"


def test_garbage_is_no_graph() -> None:
    rng = np.random.default_rng(1)
    for size in (0, 1, 7, 100, 1000):
        with pytest.raises(BundleError):
            check_weights(rng.bytes(size), "w")


def _graph(initializers: list[object], *nodes: object) -> bytes:
    model = helper.make_model(helper.make_graph(list(nodes), "g", [], [], initializers))
    return bytes(model.SerializeToString())


class _Pickled:
    """Leaves a folder behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.trace),)


def test_golden_vectors_take_no_pickle_and_no_compression(tiny: TinyBundle, tmp_path: Path) -> None:
    golden = tiny.golden
    compressed, pickled, overlapping = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.savez_compressed(compressed, x_a_BCN=np.zeros((1, 1, 9), np.float32))
    np.savez(pickled, x_a_BCN=np.array([_Pickled(tmp_path / "trace")], dtype=object))
    with zipfile.ZipFile(io.BytesIO(golden.dump())) as source, zipfile.ZipFile(overlapping, "w") as archive:
        for name in source.namelist():
            archive.writestr(name, source.read(name))
        archive.filelist *= 2  # the directory names every member twice, so that little data reads as much
    for stream in (io.BytesIO(), io.BytesIO(b"PK"), compressed, pickled, overlapping):
        content = stream.getvalue()
        with pytest.raises(BundleError) as caught:
            Golden.load(content, "test")
        assert caught.value.reason == "contract"
    assert not (tmp_path / "trace").exists()
    scores = {name: np.array(s) for name, s in golden.scores.items()}
    scores["all"][0, 0] = np.nan
    with pytest.raises(BundleError) as caught:
        Golden.load(Golden(golden.windows, scores).dump(), "test")
    assert caught.value.reason == "not_finite"


def test_golden_windows_of_another_shape_are_refused(tiny: TinyBundle) -> None:
    windows = {name: x[:, :, :-1] for name, x in tiny.golden.windows.items()}
    files = {**tiny.files(), "golden.npz": Golden(windows, tiny.golden.scores).dump()}
    assert reason_of(resigned(tiny, {}, files)) == "contract"
    scores = {name: s[:, :-1] for name, s in tiny.golden.scores.items()}
    files = {**tiny.files(), "golden.npz": Golden(tiny.golden.windows, scores).dump()}
    assert reason_of(resigned(tiny, {}, files)) == "contract"


def test_keys_survive_their_files_and_are_never_overwritten(tmp_path: Path) -> None:
    private_key, public_key = generate_keys()
    private_path, public_path = save_keys(tmp_path / "keys", private_key)
    assert private_path.stat().st_mode & 0o077 == 0
    load_public_key(public_path).verify(load_private_key(private_path).sign(b"x"), b"x")
    public_key.verify(load_private_key(private_path).sign(b"x"), b"x")
    with pytest.raises(ConfigError, match="there is a key already"):
        save_keys(tmp_path / "keys", private_key)
    with pytest.raises(ConfigError, match="no ed25519 public key"):
        load_public_key(private_path)
    with pytest.raises(ConfigError, match="no ed25519 private key"):
        load_private_key(tmp_path / "missing.pem")
