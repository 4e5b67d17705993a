"""Which lake a command means, and that it is there: a command that reads never makes one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from infomae_stream.config import load_config
from infomae_stream.errors import LakeError
from infomae_stream.hub_config import HubConfig
from storage.lake import Lake
from storage.schemas import TABLES

DEFAULT_CONFIG: Final = Path("hub.toml")

LakeOption = Annotated[Path | None, typer.Option("--lake", metavar="DIR", help="The lake's folder.")]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="TOML", help="The hub's file, which names its lake (./hub.toml).")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object instead of lines for people.")]


def lake_folder(lake: Path | None, config: Path | None) -> Path:
    """The folder that the options name. Raises typer.BadParameter when they name none or two, ConfigError."""
    if lake is not None and config is not None:
        raise typer.BadParameter("give --lake or --config, not both")
    if lake is not None:
        return lake
    if config is None and not DEFAULT_CONFIG.is_file():
        raise typer.BadParameter("which lake? give --lake DIR or --config hub.toml")
    return load_config(config or DEFAULT_CONFIG, HubConfig).lake_path


def missing_tables(folder: Path) -> list[str]:
    """Tables that have no commit below `folder`."""
    return [name for name in TABLES if not any((folder / name / "_delta_log").glob("[0-9]*.json"))]


def existing_lake(lake: Path | None, config: Path | None) -> Lake:
    """The lake that the options name. Raises LakeError when there is none; nothing is made then."""
    return lake_at(lake_folder(lake, config))


def lake_at(folder: Path) -> Lake:
    """The lake in `folder`. Raises LakeError when there is none; nothing is made then.

    Tables that a newer version of the program brought, and that an old lake lacks, are made empty, as by any writer.
    """
    if len(missing_tables(folder)) == len(TABLES):
        found = "the folder is empty" if folder.is_dir() and not any(folder.iterdir()) else ""
        found = found or ("the folder holds no tables" if folder.is_dir() else "there is no such folder")
        raise LakeError(f"no lake here: {found}", where=str(folder), fix="give the folder that hub ingest writes to")
    return Lake(folder)
