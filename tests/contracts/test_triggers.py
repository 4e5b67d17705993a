"""What every trigger owes: run over each entry of TRIGGERS; a module that is not listed fails the suite.

C channels, N samples.
"""

from __future__ import annotations

import pkgutil
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import inference.triggers
from inference.triggers import TRIGGERS, Trigger, check_options
from infomae_stream.errors import ConfigError

S = 10**9
START_NS = 1_700_000_000 * S
RATE_HZ, WINDOW_S, HOP_S = 100.0, 2.0, 0.5
SECONDS, BURST_S = 120, 90  # when a burst of 2 s begins

every_trigger = pytest.mark.parametrize("name", sorted(TRIGGERS))


def make(name: str, **options: Any) -> Trigger:
    checked, cls = check_options({"type": name, **options}, where="node.toml", prefix=("detect", "triggers", "0"))
    made: Trigger = cls(checked, RATE_HZ)
    return made


def noise(seed: int = 0, burst: float = 10.0, channels: int = 1) -> NDArray[np.float32]:
    """White noise of amplitude 1 over SECONDS, in which a burst is `burst` times as loud; shape (C, N)."""
    x_CN = np.random.default_rng(seed).normal(size=(channels, round(SECONDS * RATE_HZ)))
    x_CN[:, round(BURST_S * RATE_HZ) : round((BURST_S + 2) * RATE_HZ)] *= burst
    return x_CN.astype(np.float32)


def awake_s(trigger: Trigger, x_CN: NDArray[np.float32], *, hop_s: float = HOP_S, first_s: float = 0.0) -> list[float]:
    """Starts of the windows for which it was awake."""
    found = []
    for start_s in np.arange(0, x_CN.shape[1] / RATE_HZ - WINDOW_S + 1e-9, hop_s).tolist():
        first = round(start_s * RATE_HZ)
        window_CN = x_CN[:, first : first + round(WINDOW_S * RATE_HZ)]
        if trigger.awake(START_NS + round((first_s + start_s) * S), window_CN):
            found.append(start_s)
    return found


def test_every_module_of_the_folder_is_listed() -> None:
    modules = {f"inference.triggers.{m.name}" for m in pkgutil.iter_modules(inference.triggers.__path__)}
    assert modules == {entry.split(":")[0] for entry in TRIGGERS.values()}


@every_trigger
def test_a_burst_wakes_it_and_noise_does_not(name: str) -> None:
    found = awake_s(make(name), noise())
    touched = [s for s in np.arange(0, SECONDS, HOP_S).tolist() if s + WINDOW_S > BURST_S and s < BURST_S + 2]
    assert set(touched[1:-1]) <= set(found), "the outermost windows have a few samples of it"
    quiet = [s for s in found if 60 < s < BURST_S - WINDOW_S or s > BURST_S + 12]
    assert len(quiet) <= 2


@every_trigger
def test_it_is_awake_until_it_knows_the_noise(name: str) -> None:
    found = awake_s(make(name), noise())
    assert [s for s in found if s < 6] == np.arange(0, 6, HOP_S).tolist()


@every_trigger
def test_neither_gain_nor_offset_nor_number_of_channels_matter(name: str) -> None:
    x_CN = noise()
    plain = awake_s(make(name), x_CN)
    assert awake_s(make(name), 1000 * x_CN) == plain
    assert awake_s(make(name), x_CN + 100) == plain
    assert awake_s(make(name), np.repeat(x_CN, 3, axis=0)) == plain


@every_trigger
def test_samples_that_windows_share_count_once(name: str) -> None:
    """The same decisions of the windows that both have, whatever the overlap."""
    x_CN = noise()
    apart = awake_s(make(name), x_CN, hop_s=WINDOW_S)
    overlapping = [s for s in awake_s(make(name), x_CN) if s % WINDOW_S == 0]
    assert overlapping == apart


@every_trigger
@pytest.mark.parametrize("first_s", [-3600.0, 3600.0], ids=["set back", "hole"])
def test_after_a_hole_or_a_clock_that_was_set_back_it_learns_the_noise_anew(name: str, first_s: float) -> None:
    trigger = make(name)
    awake_s(trigger, noise())
    louder = awake_s(trigger, 100 * noise(1), first_s=first_s)
    assert louder == awake_s(make(name), 100 * noise(1))


@every_trigger
def test_a_dead_sensor_is_quiet_and_harms_nothing(name: str) -> None:
    found = awake_s(make(name), np.zeros((2, round(SECONDS * RATE_HZ)), np.float32))
    assert [s for s in found if s > 40] == []


@every_trigger
def test_an_unknown_option_is_refused_with_its_dotted_key(name: str) -> None:
    with pytest.raises(ConfigError, match=r"node\.toml: detect\.triggers\.0\.onn: unknown key; did you mean 'on"):
        make(name, onn=3)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"type": "sta_lta", "sta_s": 40.0}, "sta_s is not below lta_s"),
        ({"type": "sta_lta", "off": 4.0}, "off is above on"),
        ({"type": "energy", "off_db": 9.0}, "off_db is above on_db"),
        ({"type": "energy", "block_s": 0}, r"detect\.triggers\.0\.block_s"),
        ({"type": "stalta"}, r"detect\.triggers\.0\.type: 'stalta' is no trigger; known: energy, sta_lta"),
        ({}, "None is no trigger"),
    ],
)
def test_bad_settings_are_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        check_options(options, where="node.toml", prefix=("detect", "triggers", "0"))


def test_the_floor_of_the_energy_trigger_follows_louder_noise_slowly_and_softer_noise_soon() -> None:
    x_CN = noise(burst=1.0)
    louder, softer = x_CN.copy(), x_CN.copy()
    louder[:, 6000:] *= 10
    found = awake_s(make("energy"), louder)
    assert set(np.arange(60, 90, HOP_S).tolist()) <= set(found), "with 60 s to follow, 20 dB are 12 after half of it"
    softer[:, 6000:] /= 10
    softer[:, 9000:9200] *= 4
    found = awake_s(make("energy"), softer)
    assert {89.0, 90.0, 91.0} <= set(found), "12 dB above what it is now, and 8 below what it was"
