"""`node install`: the systemd unit of this node, shown, written and started."""

from __future__ import annotations

import difflib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer

from collectors.deploying.node_toml import check_sources
from collectors.deploying.unit import NAME, ServicePaths, groups, needed, secrets, sysusers_text, udev_text, unit_text
from infomae_stream.config import load_config
from infomae_stream.errors import InfomaeError
from infomae_stream.node_config import NodeConfig

UNIT: Final = Path("etc/systemd/system") / f"{NAME}.service"
SYSUSERS: Final = Path("etc/sysusers.d") / f"{NAME}.conf"
UDEV: Final = Path("etc/udev/rules.d/60-infomae-iio.rules")
READABLE_BY_ALL: Final = 0o004


def install(
    config: Annotated[Path, typer.Option("--config", help="The node's TOML file.")] = Path("/etc/infomae/node.toml"),
    prefix: Annotated[Path, typer.Option(help="The root of an image to write into.")] = Path("/"),
    program: Annotated[
        Path | None, typer.Option(help="infomae-stream as the service is to call it; this one when left out.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Write and start without asking.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show.")] = False,
) -> None:
    """Show the systemd unit that this configuration needs, then write it, enable it and start it."""
    settings = load_config(config, NodeConfig, {})
    check_sources(settings, str(config))
    root = prefix.resolve()
    paths = ServicePaths(
        _inside(program or Path(sys.executable).with_name("infomae-stream"), root), _inside(config, root)
    )
    files = planned(settings, paths, root, _systemd_version() if root == Path("/") else 0)
    for file in files:
        typer.echo(file.shown())
    for warning in unreadable(settings, config):
        typer.echo(f"warning: {warning}")
    if not any(file.changes for file in files):
        typer.echo("nothing to write: all files are as they should be")
    elif dry_run:
        return
    elif not yes and not (sys.stdin.isatty() and typer.confirm("Write these?", default=False)):
        typer.echo("nothing was written; --yes writes")
        return
    if dry_run:
        return
    write(files)
    _carry_out(commands(settings, root, restart=any(file.changes for file in files)))


@dataclass(frozen=True, slots=True)
class PlannedFile:
    path: Path
    text: str

    @property
    def before(self) -> str | None:
        """What lies there now; None where nothing does."""
        try:
            return self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    @property
    def changes(self) -> bool:
        return self.before != self.text

    def shown(self) -> str:
        """The whole of a new file, the difference of one that changes."""
        before = self.before
        if before is None:
            return f"--- new: {self.path}\n{self.text}"
        if before == self.text:
            return f"--- as it is: {self.path}\n"
        lines = difflib.unified_diff(before.splitlines(), self.text.splitlines(), "now", "then", lineterm="", n=1)
        return f"--- changes: {self.path}\n" + "\n".join(lines) + "\n"


def planned(config: NodeConfig, paths: ServicePaths, root: Path, systemd_version: int) -> list[PlannedFile]:
    """Every file that the service of `config` needs below `root`."""
    files = [PlannedFile(root / UNIT, unit_text(config, paths, systemd_version))]
    if groups(config):
        files.append(PlannedFile(root / SYSUSERS, sysusers_text(groups(config))))
    if "iio" in needed(config):
        files.append(PlannedFile(root / UDEV, udev_text()))
    return files


def write(files: Sequence[PlannedFile]) -> None:
    """Write what changes; each file is replaced whole. Raises InfomaeError where this user may not."""
    for file in files:
        if not file.changes:
            continue
        temporary = file.path.with_name(f".{file.path.name}.new")
        try:
            file.path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(file.text, encoding="utf-8")
            temporary.chmod(0o644)
            temporary.replace(file.path)
        except PermissionError as e:
            raise InfomaeError("this user may not write there", where=str(file.path), fix="run it with sudo") from e
        typer.echo(f"wrote {file.path}")


def commands(config: NodeConfig, root: Path, *, restart: bool) -> list[list[str]]:
    """What makes systemd take the files up. restart: one that runs already has to read its new unit."""
    if root != Path("/"):
        return [["systemctl", f"--root={root}", "enable", NAME]]
    made = [["systemd-sysusers", f"/{SYSUSERS}"]] if groups(config) else []
    if "iio" in needed(config):
        made += [["udevadm", "control", "--reload"], ["udevadm", "trigger", "--subsystem-match=iio", "--action=add"]]
    made += [["systemctl", "daemon-reload"], ["systemctl", "enable", NAME]]
    return [*made, ["systemctl", "restart" if restart else "start", NAME]]


def unreadable(config: NodeConfig, path: Path) -> list[str]:
    """What the service's user, who is nobody in particular, will not be able to read; and what is not there."""
    warnings = []
    mqtt = [config.mqtt.for_node(node.node) for node in config.nodes]
    open_files = [*(m.ca_file for m in mqtt), *(m.cert_file for m in mqtt), *config.detect.trusted_keys]
    for file in dict.fromkeys([path, *(config.path(name) for name in open_files if name)]):
        if not file.is_file():
            warnings.append(f"{file} is not there; see `infomae-stream node doctor --config {path}`")
        elif not file.stat().st_mode & READABLE_BY_ALL:
            warnings.append(f"the service cannot read {file}: chmod a+r {shlex.quote(str(file))}")
    warnings += [
        f"{file} is not there, and the unit names it" for file in secrets(config).values() if not file.is_file()
    ]
    return warnings


def _inside(path: Path, root: Path) -> Path:
    """`path` as the machine below `root` will see it."""
    path = Path(os.path.abspath(path))
    return Path("/") / path.relative_to(root) if path.is_relative_to(root) else path


def _systemd_version() -> int:
    """0 where there is no systemd."""
    if shutil.which("systemctl") is None:
        return 0
    told = subprocess.run(["systemctl", "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    found = re.match(r"systemd (\d+)", told)
    return int(found[1]) if found else 0


def _carry_out(wanted: Sequence[Sequence[str]]) -> None:
    """Run the commands where systemd is in charge and we are root; say what to run elsewhere."""
    offline = wanted[0][0] == "systemctl" and wanted[0][1].startswith("--root=")
    in_charge = Path("/run/systemd/system").is_dir() and os.geteuid() == 0
    if not (in_charge or (offline and shutil.which("systemctl"))):
        why = "this is not root" if os.geteuid() else "systemd does not run here"
        typer.echo(f"{why}; to be run there:")
        for command in wanted:
            typer.echo("  " + shlex.join(command))
        return
    for command in wanted:
        typer.echo("+ " + shlex.join(command))
        ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if ended.returncode:
            raise InfomaeError(ended.stderr.strip() or f"exit {ended.returncode}", where=shlex.join(command))
    if not offline:
        typer.echo(f"watch it: journalctl -fu {NAME}")
