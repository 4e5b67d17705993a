"""The configuration that the documents show is the configuration that the program takes."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

from infomae_stream.config import load_config
from infomae_stream.hub_config import HubConfig
from infomae_stream.node_config import NodeConfig

ROOT = Path(__file__).resolve().parents[2]
MODELS = {"node.toml": NodeConfig, "hub.toml": HubConfig}
BLOCKS = [
    (document.name, match[1], match[2])
    for document in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for match in re.finditer(r"```toml\n# (\S+)\n(.*?)```", document.read_text(), re.DOTALL)
]


def test_both_files_are_documented() -> None:
    assert {name for _, name, _ in BLOCKS} == set(MODELS)


@pytest.mark.parametrize(("document", "name", "text"), BLOCKS)
def test_a_documented_file_is_accepted(document: str, name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    load_config(path, MODELS[name], {})


def test_links_between_documents_lead_somewhere() -> None:
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_the_page_that_follows_a_chunk_names_what_there_is() -> None:
    names = re.findall(r"`([a-z_]+(?:\.[a-z_]+)*):([A-Za-z_.]+)`", (ROOT / "docs" / "one-chunk.md").read_text())
    assert len(names) > 40
    for module, attributes in names:
        found: object = import_module(module)
        for attribute in attributes.split("."):
            found = getattr(found, attribute)
