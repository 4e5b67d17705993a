"""`node install` makes a unit that systemd takes, shut but for what the configured sensors need."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from collectors.deploying.install import UDEV, UNIT, commands, planned, unreadable
from collectors.deploying.node_toml import NodeFile
from collectors.deploying.source_lines import source_lines
from collectors.deploying.unit import BACKOFF_SYSTEMD, ServicePaths, unit_text
from infomae_stream.config import load_config
from infomae_stream.node_config import NodeConfig
from tests.commands import run_command

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
PROGRAM = shutil.which("true") or "/bin/true"
SENSORS = {
    "none": [("synthetic", {})],
    "sound": [("alsa", {})],
    "i2c": [("i2c", {})],
    "iio": [("iio", {"device": "lsm6dso"})],
    "all": [("alsa", {}), ("i2c", {}), ("iio", {"device": "lsm6dso"}), ("raspberry_shake", {"station": "R1"})],
}


def node_file(folder: Path, sensors: str = "none", *, tls: bool = True) -> Path:
    path = folder / "node.toml"
    sources = [source_lines(kind, given) for kind, given in SENSORS[sensors]]
    path.write_text(
        NodeFile("orchard", "orchard-1", "hub.local", 8883 if tls else 1883, tls, "system", sources).text(path)
    )
    return path


def unit(folder: Path, sensors: str, version: int = 0, *, tls: bool = True) -> str:
    path = node_file(folder, sensors, tls=tls)
    return unit_text(load_config(path, NodeConfig, {}), ServicePaths(Path(PROGRAM), path), version)


@needs_systemd
@pytest.mark.parametrize("sensors", SENSORS)
def test_systemd_takes_the_unit_and_finds_it_hardened(sensors: str, tmp_path: Path) -> None:
    written = tmp_path / "infomae-node.service"
    written.write_text(unit(tmp_path, sensors))
    verified = subprocess.run(["systemd-analyze", "verify", str(written)], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stderr) == (0, "")
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=30", "--no-pager", str(written)]
    judged = subprocess.run(command, capture_output=True, text=True, check=False)
    assert judged.returncode == 0, judged.stdout[-200:] + judged.stderr


def settings(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"^([A-Za-z]+)=(.*)$", text, flags=re.M):
        found.setdefault(key, []).append(value)
    return found


def test_only_the_sensors_of_the_file_are_opened(tmp_path: Path) -> None:
    shut, sound, every = (settings(unit(tmp_path, name)) for name in ("none", "sound", "all"))
    assert shut["PrivateDevices"] == ["yes"] and "DeviceAllow" not in shut and "SupplementaryGroups" not in shut
    assert sound["DeviceAllow"] == ["char-alsa rw"] and sound["SupplementaryGroups"] == ["audio"]
    assert every["DeviceAllow"] == ["char-alsa rw", "char-i2c rw", "char-iio rw"]
    assert every["SupplementaryGroups"] == ["audio i2c iio"]
    for opened in (sound, every):
        assert opened["DevicePolicy"] == ["closed"] and "PrivateDevices" not in opened
    # An IIO buffer is switched on through sysfs.
    assert every["ReadWritePaths"] == ["-/sys/devices"] and "ProtectKernelTunables" not in every
    assert sound["ProtectKernelTunables"] == ["yes"]


def test_the_clock_can_be_read_and_not_set(tmp_path: Path) -> None:
    made = settings(unit(tmp_path, "none"))
    assert "ProtectClock" not in made, "it refuses clock_adjtime, by which the clock's quality is read"
    assert "clock_adjtime" in made["SystemCallFilter"][-1].split(), "after what is taken away"
    assert made["CapabilityBoundingSet"] == [""], "without CAP_SYS_TIME nothing can be set"


def test_keys_come_as_credentials_and_the_state_is_systemds(tmp_path: Path) -> None:
    made = settings(unit(tmp_path, "none"))
    assert made["LoadCredential"] == [f"orchard-1.key:{tmp_path}/tls/orchard-1.key"]
    assert made["Environment"] == ["INFOMAE__MQTT__KEY_FILE=%d/{node}.key", "INFOMAE__STATE_DIR=/var/lib/infomae-node"]
    assert "LoadCredential" not in settings(unit(tmp_path, "none", tls=False))


def test_what_the_environment_says_is_what_the_node_reads(tmp_path: Path) -> None:
    path = node_file(tmp_path)
    credentials = tmp_path / "credentials"
    environ = dict(
        line.replace("%d", str(credentials)).split("=", 1) for line in settings(unit(tmp_path, "none"))["Environment"]
    )
    config = load_config(path, NodeConfig, environ)
    assert config.path(config.mqtt.for_node("orchard-1").key_file) == credentials / "orchard-1.key"
    assert config.path(config.state_dir) == Path("/var/lib/infomae-node")


def test_restarts_back_off_where_systemd_knows_how(tmp_path: Path) -> None:
    old, new = settings(unit(tmp_path, "none", 252)), settings(unit(tmp_path, "none", BACKOFF_SYSTEMD))
    assert "RestartSteps" not in old and old["StartLimitIntervalSec"] == ["0"]
    assert new["RestartSteps"] == ["8"] and new["RestartMaxDelaySec"] == ["300"]


def install(config: Path, prefix: Path, *arguments: str) -> str:
    return (
        run_command("node", "install", "--config", config, "--prefix", prefix, "--program", PROGRAM, *arguments)
        .ok()
        .out
    )


def test_nothing_is_written_before_it_was_shown_and_agreed_to(tmp_path: Path) -> None:
    config, image = node_file(tmp_path), tmp_path / "image"
    for arguments in ([], ["--dry-run"], ["--dry-run", "--yes"]):
        shown = install(config, image, *arguments)
        assert "ExecStart=" in shown and not image.exists()
    assert "--yes writes" in install(config, image)


@pytest.mark.skipif(shutil.which("systemctl") is None, reason="systemctl is not here")
def test_installing_twice_changes_nothing_and_a_change_is_shown(tmp_path: Path) -> None:
    image = tmp_path / "image"
    first = install(node_file(tmp_path), image, "--yes")
    assert f"wrote {image / UNIT}" in first
    enabled = image / "etc/systemd/system/multi-user.target.wants/infomae-node.service"
    assert enabled.is_symlink() and (image / UNIT).stat().st_mode & 0o777 == 0o644
    before = (image / UNIT).stat().st_mtime_ns
    again = install(node_file(tmp_path), image, "--yes")
    assert "nothing to write" in again and (image / UNIT).stat().st_mtime_ns == before
    changed = install(node_file(tmp_path, "iio"), image, "--yes")
    assert "+SupplementaryGroups=iio" in changed and "-PrivateDevices=yes" in changed
    assert 'SUBSYSTEM=="iio"' in (image / UDEV).read_text()
    assert "g iio -" in (image / "etc/sysusers.d/infomae-node.conf").read_text()


def test_a_config_inside_an_image_is_named_as_the_image_sees_it(tmp_path: Path) -> None:
    (tmp_path / "etc/infomae").mkdir(parents=True)
    config = node_file(tmp_path / "etc/infomae")
    assert "node run --config /etc/infomae/node.toml" in install(config, tmp_path, "--dry-run")


def test_a_bad_configuration_is_refused(tmp_path: Path) -> None:
    config = node_file(tmp_path)
    config.write_text(config.read_text().replace('type = "synthetic"', 'type = "synthetic"\nsped = 1'))
    ran = run_command("node", "install", "--config", config, "--prefix", tmp_path / "image", "--yes")
    assert ran.code == 78 and "sped" in ran.err and not (tmp_path / "image").exists()


def test_files_that_the_service_could_not_read_are_named(tmp_path: Path) -> None:
    path = node_file(tmp_path)
    config = load_config(path, NodeConfig, {})
    told = "\n".join(unreadable(config, path))
    for name in ("ca.pem", "orchard-1.pem", "release.pub", "orchard-1.key"):
        assert f"{tmp_path}/tls/{name} is not there" in told
    path.chmod(0o600)
    assert f"chmod a+r {path}" in "\n".join(unreadable(config, path))


def test_systemd_is_told_of_groups_rules_and_the_unit(tmp_path: Path) -> None:
    config = load_config(node_file(tmp_path, "iio"), NodeConfig, {})
    words = [" ".join(command) for command in commands(config, Path("/"), restart=True)]
    assert words == [
        "systemd-sysusers /etc/sysusers.d/infomae-node.conf",
        "udevadm control --reload",
        "udevadm trigger --subsystem-match=iio --action=add",
        "systemctl daemon-reload",
        "systemctl enable infomae-node",
        "systemctl restart infomae-node",
    ]
    assert commands(config, Path("/"), restart=False)[-1] == ["systemctl", "start", "infomae-node"]
    files = planned(config, ServicePaths(Path(PROGRAM), Path("/n.toml")), tmp_path, 0)
    assert [file.path.name for file in files] == ["infomae-node.service", "infomae-node.conf", "60-infomae-iio.rules"]
