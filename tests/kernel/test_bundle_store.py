from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from infomae_stream.bundle import Bundle, open_bundle, save_keys
from infomae_stream.bundle_commands import verify
from infomae_stream.bundle_store import MAX_UNCLEAN_ENDS, BundleStore
from infomae_stream.errors import BundleError
from tests.tiny_bundle import PRIVATE_KEY, PUBLIC_KEY, TinyBundle

NOW_NS = 1_700_000_000 * 10**9


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    made = {}
    for name, version, seed in (("one", 1, 0), ("two", 2, 1), ("other_two", 2, 2), ("three", 3, 3)):
        path = folder / f"{name}.zip"
        TinyBundle(version=version, seed=seed).write(path)
        made[name] = open_bundle(path, [PUBLIC_KEY], now_ns=NOW_NS, min_version=0)
    return made


def test_the_newest_serves_and_the_one_before_is_kept(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    store = BundleStore(tmp_path)
    assert store.open_current([PUBLIC_KEY]) is None
    for name in ("one", "two", "three"):
        store.activate(bundles[name])
    again = BundleStore(tmp_path)
    served = again.open_current([PUBLIC_KEY])
    assert served is not None
    assert served.sha256 == bundles["three"].sha256
    assert again.previous is not None and again.previous.version == 2
    assert len(list(tmp_path.glob("*.zip"))) == 2


def test_the_highest_version_ever_accepted_survives_revert_and_restart(
    bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    store = BundleStore(tmp_path)
    store.activate(bundles["one"])
    store.activate(bundles["two"])
    back = store.revert()
    assert back is not None and back.version == 1
    again = BundleStore(tmp_path)
    assert again.highest_version == 2
    for name, reason in (("one", "older"), ("other_two", "older"), ("two", "runtime")):
        with pytest.raises(BundleError) as caught:
            again.activate(bundles[name])
        assert caught.value.reason == reason
    assert again.activate(bundles["three"]).version == 3


def test_revert_of_the_first_leaves_none(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    store = BundleStore(tmp_path)
    store.activate(bundles["one"])
    assert store.revert() is None
    assert BundleStore(tmp_path).open_current([PUBLIC_KEY]) is None


def test_a_rotten_file_is_not_served(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    store = BundleStore(tmp_path)
    path = store.path(store.activate(bundles["one"]))
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError):
        store.open_current([PUBLIC_KEY])
    # A whole other bundle in its place is signed, but not what was installed.
    path.write_bytes(bundles["two"].content)
    with pytest.raises(BundleError, match="not the bundle that was installed"):
        store.open_current([PUBLIC_KEY])


def test_a_broken_pointer_file_is_an_error_and_not_a_fresh_start(tmp_path: Path) -> None:
    (tmp_path / "pointer.json").write_text('{"v":1,')
    with pytest.raises(BundleError, match="forgets the highest version"):
        BundleStore(tmp_path)


KILLED_INSTALL = """
import os, signal, sys
from pathlib import Path
from infomae_stream.bundle import open_bundle, load_public_key
from infomae_stream.bundle_store import BundleStore
folder, key, bundle_file, kill_at = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
bundle = open_bundle(bundle_file, [load_public_key(key)], now_ns=0, min_version=0)
store = BundleStore(folder)
steps = 0
def kill_before_step(event, args):
    global steps
    if event in ("open", "os.rename", "os.remove", "os.mkdir") and str(folder) in str(args):
        if steps == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        steps += 1
sys.addaudithook(kill_before_step)
store.activate(bundle)
print("done")
"""


@pytest.mark.slow
def test_a_kill_at_any_step_of_an_install_leaves_the_old_or_the_new(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    key_path, bundle_path = save_keys(tmp_path / "keys", PRIVATE_KEY)[1], tmp_path / "two.zip"
    bundle_path.write_bytes(bundles["two"].content)
    outcomes = []
    for kill_at in range(40):
        folder = tmp_path / f"at{kill_at}"
        BundleStore(folder).activate(bundles["one"])
        command = [sys.executable, "-c", KILLED_INSTALL, str(folder), str(key_path), str(bundle_path), str(kill_at)]
        run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        store = BundleStore(folder)
        served = store.open_current([PUBLIC_KEY])
        assert served is not None
        outcomes.append(served.version)
        assert store.highest_version == served.version
        store.activate(bundles["two"])
        store.activate(bundles["three"])
        assert len(list(folder.glob("*.zip"))) == 2
        assert list(folder.glob(".*.tmp")) == []
        if run.stdout.strip() == "done":
            break
        assert run.returncode == -9, run.stderr
    assert run.stdout.strip() == "done"
    assert outcomes == sorted(outcomes) and set(outcomes) == {1, 2}
    assert len(outcomes) > 5


def test_the_commands_make_keys_and_verify(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "infomae_stream.cli", "bundle", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    made = cli("keygen", str(tmp_path / "keys"), "--json")
    public = json.loads(made.stdout)["public_key"]
    file = tmp_path / "b.zip"
    file.write_bytes(bundles["one"].content)
    refused = cli("verify", str(file), "--key", public, "--json")
    assert refused.returncode == 1
    assert json.loads(refused.stdout)["reason"] == "signature"
    plain = cli("verify", str(file), "--key", public)
    assert plain.returncode == 1
    assert "not signed by any" in plain.stderr
    trusted = str(save_keys(tmp_path / "trusted", PRIVATE_KEY)[1])
    good = cli("verify", str(file), "--key", public, "--key", trusted, "--json")
    assert good.returncode == 0
    told = json.loads(good.stdout)
    assert told["verified"] and told["version"] == 1 and told["sha256"] == bundles["one"].sha256
    assert cli("verify", str(file), "--key", trusted).stdout.startswith("verified\n")
    assert cli("keygen", str(tmp_path / "keys")).returncode == 78  # never overwritten
    file.write_bytes(bundles["one"].content[:-1])
    assert json.loads(cli("verify", str(file), "--key", trusted, "--json").stdout)["reason"] == "truncated"


def test_verify_shows_what_each_subset_of_modalities_is_worth(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = TinyBundle(int8=True)
    tiny.fields["subsets"] = [
        {"modalities": ["watch_imu"], "macro_f1": 0.5, "windows": 40},
        {"modalities": ["phone_imu", "watch_imu"], "macro_f1": 0.875, "windows": 40},
        {"modalities": ["phone_imu"], "macro_f1": 0.75, "windows": 40},
    ]
    file, key = tiny.write(tmp_path / "b.zip").path, save_keys(tmp_path / "keys", PRIVATE_KEY)[1]
    verify(file, [key])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-4:] == [
        "  modalities present     macro-F1  lost   (40 validation windows)",
        "  phone_imu + watch_imu     0.875  0.000",
        "  phone_imu                 0.750  0.125",
        "  watch_imu                 0.500  0.375",
    ]
    assert "  int8: True" in lines and "  format: 2" in lines
    verify(file, [key], as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["missing_losses"] == {"phone_imu": 0.375, "watch_imu": 0.125} and told["int8"] is True
    assert told["subsets"] == tiny.fields["subsets"]
    verify(TinyBundle().write(tmp_path / "old.zip").path, [key])
    assert "  subsets: not measured" in capsys.readouterr().out


def test_a_trial_counts_the_processes_that_began_and_forgets_those_that_ended(
    bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    sha256 = bundles["two"].sha256
    store = BundleStore(tmp_path)
    assert not store.on_trial(sha256)
    for _ in range(2 * MAX_UNCLEAN_ENDS):
        store.begin_trial(sha256)
        store.leave_trial(sha256)
    for _ in range(MAX_UNCLEAN_ENDS):
        BundleStore(tmp_path).begin_trial(sha256)
    with pytest.raises(BundleError) as caught:
        BundleStore(tmp_path).begin_trial(sha256)
    assert caught.value.reason == "runtime"
    # Another one that is installed meanwhile takes the record along; the bundles that are kept keep theirs.
    store.begin_trial(bundles["one"].sha256)
    store.activate(bundles["one"])
    assert not store.on_trial(sha256) and store.on_trial(bundles["one"].sha256)
    store.end_trial(bundles["one"].sha256)
    assert not store.on_trial(bundles["one"].sha256)
