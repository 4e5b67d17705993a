"""`infomae-stream`: finds each command by name in a table, so that nothing is imported before it is asked for."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from infomae_stream import __version__
from infomae_stream.errors import InfomaeError

# command path -> ("module:function", one line of help); the function carries typer's annotations.
COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "node run": ("infomae_stream.run_commands:node_run", "Collect and detect: start and watch both processes."),
    "node collect": ("collectors.service:collect", "Sensors into the outbox, outbox to the hub."),
    "node detect": ("inference.service:detect", "Windows of the outbox into detections."),
    "node init": ("collectors.deploying.init:init", "Ask, or take options, and write a node's TOML file."),
    "node devices": ("collectors.deploying.devices:devices", "List the sensors that are plugged in, with their lines."),
    "node doctor": ("collectors.deploying.doctor:doctor", "Check all that a node needs; one fix a line."),
    "node install": ("collectors.deploying.install:install", "Show, then write and start this node's systemd unit."),
    "node request": ("infomae_stream.node_request:request", "Make this node's key and a signing request for the hub."),
    "hub init": ("collectors.enrolment.commands:init", "Make authority, broker files, keys and a first hub.toml."),
    "hub enroll": ("collectors.enrolment.commands:enroll", "Sign a node's request."),
    "hub revoke": ("collectors.enrolment.commands:revoke", "Put a node's certificates on the revocation list."),
    "hub nodes": ("collectors.enrolment.commands:nodes", "Certificates of nodes: state and last day."),
    "hub run": ("infomae_stream.run_commands:hub_run", "Start and watch ingest, maintenance and aligner."),
    "hub ingest": ("collectors.hub.ingest_service:ingest", "MQTT into the lake, then acknowledge."),
    "hub maintain": ("storage.maintain_service:maintain", "Merge small files, retire old data, delete old files."),
    "hub align": ("aligner.service:align", "Find pairs, align when there are enough, release what passes."),
    "hub train": ("aligner.training_process:train", "One alignment run from a snapshot file (hub align starts it)."),
    "sensor simulate-shake": (
        "collectors.sensing.shake_simulator:simulate_shake",
        "Send what a Shake would.",
    ),
    "label import": ("aligner.labels:import_labels", "Take labelled intervals from a CSV file into the lake."),
    "lake status": ("storage.lake_commands:status", "Tables, streams, gaps, coverage, dead letters, disk."),
    "lake query": ("storage.lake_commands:query", "Ask the lake in SQL; read only."),
    "lake export": ("storage.export_commands:export", "Samples into Parquet, CSV, WAV or miniSEED files."),
    "lake import": ("collectors.hub.lake_import:import_files", "Exported or foreign recordings into the lake."),
    "lake compact": ("storage.maintenance_commands:compact_lake", "Merge small files into few large ones."),
    "lake vacuum": ("storage.maintenance_commands:vacuum_lake", "Delete files that no kept version needs."),
    "lake verify": ("collectors.hub.lake_verify:verify", "Missing numbers, bad checksums, torn and orphan files."),
    "lake dead-letters": ("collectors.hub.dead_letter_commands:dead_letters", "Refused messages: list, show, export."),
    "broker run": ("collectors.broker:run", "An embedded MQTT broker (amqtt), for trials and small sites."),
    "bundle keygen": ("infomae_stream.bundle_commands:keygen", "Make the pair of keys that signs and checks bundles."),
    "bundle verify": ("infomae_stream.bundle_commands:verify", "Check a bundle's signature, hashes and contract."),
    "bundle golden": ("inference.golden_commands:golden", "Run a bundle's golden vectors on this machine."),
}

EXTRA_OF: Final = {
    "pyarrow": "hub",
    "duckdb": "hub",
    "deltalake": "hub",
    "amqtt": "broker",
    "torch": "train",
    "onnx": "train",
    "obspy": "seismo",
    "sounddevice": "audio",
    "soundfile": "audio",
    "smbus2": "imu",
}


class _LazyGroup(TyperGroup):
    """A group whose commands stand in COMMANDS; `path` is what was typed so far ("" at the root, then "node ")."""

    path = ""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(dict.fromkeys(c.removeprefix(self.path).split()[0] for c in COMMANDS if c.startswith(self.path)))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        path = self.path + cmd_name
        if path in COMMANDS:
            module, function = COMMANDS[path][0].split(":")
            single = typer.Typer(add_completion=False)
            single.command(name=cmd_name)(getattr(import_module(module), function))
            return typer.main.get_command(single)
        if any(c.startswith(path + " ") for c in COMMANDS):
            group = type("Group", (_LazyGroup,), {"path": path + " "})
            return typer.main.get_group(typer.Typer(name=cmd_name, cls=group, no_args_is_help=True))
        return None

    def format_help(self, ctx: Any, formatter: Any) -> None:
        typer.echo(f"Usage: infomae-stream {self.path}COMMAND ...\n")
        for command, (_, text) in COMMANDS.items():
            if command.startswith(self.path):
                typer.echo(f"  {command:<{max(map(len, COMMANDS)) + 2}}{text}")
        typer.echo("\ninfomae-stream COMMAND --help tells the options of one.")


app = typer.Typer(name="infomae-stream", cls=_LazyGroup, no_args_is_help=True)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"infomae-stream {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True)] = False,
) -> None:
    """Collect, pair, align, detect."""


def check_package_names() -> None:
    """Raise InfomaeError when another distribution shadows one of our packages: their names are generic."""
    home = Path(__file__).resolve().parents[1]
    for name in ("collectors", "aligner", "inference", "storage"):
        spec = find_spec(name)
        if spec is None or spec.origin is None or Path(spec.origin).resolve().parents[1] != home:
            where = spec.origin if spec and spec.origin else "nowhere"
            raise InfomaeError(
                f"package {name!r} is taken from {where}, not from {home}",
                fix="install infomae-stream into an environment of its own",
            )


def main() -> None:
    """Run a command; an error of the product's own tree becomes one line and its exit code."""
    try:
        check_package_names()
        app()
    except InfomaeError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(e.exit_code)
    except ModuleNotFoundError as e:
        if e.name in EXTRA_OF:
            print(
                f"error: {e.name} is not installed; pip install 'infomae-stream[{EXTRA_OF[e.name]}]'", file=sys.stderr
            )
            sys.exit(1)
        raise


if __name__ == "__main__":
    main()
