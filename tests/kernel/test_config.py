from __future__ import annotations

from pathlib import Path

import pytest

from infomae_stream.config import load_config
from infomae_stream.errors import ConfigError
from infomae_stream.hub_config import HubConfig
from infomae_stream.node_config import NodeConfig

NODE = """
[mqtt]
port = 1884
[[nodes]]
site = "s01"
node = "s01-phone"
sources = [{type = "replay"}]
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "node.toml"
    path.write_text(text)
    return path


def test_a_file_becomes_settings_with_defaults_and_its_folder(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, NODE), NodeConfig, {})
    assert (config.mqtt.port, config.mqtt.host, config.base_dir) == (1884, "127.0.0.1", tmp_path)
    assert config.outbox_path(config.nodes[0]) == tmp_path / "state/s01/s01-phone/outbox.sqlite"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (NODE.replace("port", "prot"), ["node.toml", "mqtt.prot", "unknown key", "did you mean 'port'?"]),
        (NODE.replace('site = "s01"', 'site = "s01"\nsight = 1'), ["nodes.0.sight", "unknown key", "'site'"]),
        (NODE.replace("1884", "70000"), ["mqtt.port", "65535", "70000"]),
        (NODE.replace('"s01-phone"', '"S01 Phone"'), ["nodes.0.node", "a-z"]),
        (NODE.replace("sources = [", "# ["), ["nodes.0.sources", "missing"]),
        (NODE + '[[nodes]]\nsite="x"\nnode="s01-phone"\nsources=[{}]\n', ["'s01-phone' stands twice"]),
        ("[mqtt\n", ["not valid TOML"]),
        (
            NODE + "[nodes.shedding.audio]\nprority = 2\n",
            ["nodes.0.shedding.audio.prority", "did you mean 'priority'?"],
        ),
        (NODE + "[nodes.shedding.audio]\npriority = 0\n", ["nodes.0.shedding.audio.priority", "1", "got 0"]),
        (NODE + '[nodes.shedding."Au dio"]\npriority = 2\n', ["nodes.0.shedding.Au dio", "a-z"]),
        ("[outbox]\nmax_age_s = -1\n" + NODE, ["outbox.max_age_s", "got -1"]),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as e:
        load_config(write(tmp_path, text), NodeConfig, {})
    assert e.value.exit_code == 78
    for word in words:
        assert word in str(e.value)


def test_a_missing_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "none.toml", NodeConfig, {})


def test_the_environment_overrides_single_keys(tmp_path: Path) -> None:
    environ = {"INFOMAE__MQTT__HOST": "broker.local", "INFOMAE__MQTT__PORT": "8883", "HOME": "/x"}
    config = load_config(write(tmp_path, NODE), NodeConfig, environ)
    assert (config.mqtt.host, config.mqtt.port) == ("broker.local", 8883)
    with pytest.raises(ConfigError, match=r"mqtt\.hots"):
        load_config(write(tmp_path, NODE), NodeConfig, {"INFOMAE__MQTT__HOTS": "x"})


def test_the_hub_file_is_held_to_its_sections(tmp_path: Path) -> None:
    text = '[matcher]\nmodalities = ["a"]\n[align]\nclasses = ["x", "y"]\n[release]\nexpire_days = 3\n'
    with pytest.raises(ConfigError, match="did you mean 'expires_days'"):
        load_config(write(tmp_path, text), HubConfig, {})
