from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from infomae_stream.clock import NS_PER_S
from infomae_stream.errors import DataError
from infomae_stream.scene import ContinuousScene, SceneNode, SceneWindows, draw_scene_windows, held_out_factors
from infomae_stream.scene_signals import FORMANT_HZ, FUNDAMENTAL_HZ, LEVELS, RESONANCE_HZ, SENSORS
from infomae_stream.types import StreamId

START_NS = 1_700_000_003 * NS_PER_S
NODES = [
    SceneNode("road", "near", -20.0),
    SceneNode("road", "far", 30.0, clock_offset_s=0.25, clock_drift_ppm=100.0, response=2),
    SceneNode("yard", "lone", 0.0, kinds=("seismic", "imu")),
]


@pytest.fixture(scope="module")
def windows() -> SceneWindows:
    return draw_scene_windows(300, seed=7)


def mutual_information_bits(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    """Plug-in estimate from the table of counts."""
    table = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(table, (a, b), 1)
    joint = table / table.sum()
    independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    seen = joint > 0
    return float(np.sum(joint[seen] * np.log2(joint[seen] / independent[seen])))


def test_the_same_seed_draws_the_same_windows_however_many() -> None:
    few, more = draw_scene_windows(3, seed=1), draw_scene_windows(5, seed=1)
    other = draw_scene_windows(3, seed=2)
    for kind in ("seismic", "acoustic"):
        np.testing.assert_array_equal(few.x[kind], more.x[kind][:3])
        assert not np.array_equal(few.x[kind], other.x[kind])
        assert few.x[kind].dtype == np.float32
    assert few.x["seismic"].shape == (3, 1, 200)
    assert few.x["acoustic"].shape == (3, 1, 16000)
    assert draw_scene_windows(2, 1, kinds=("imu",), window_s=1.0).x["imu"].shape == (2, 6, 100)
    with pytest.raises(DataError, match="unknown sensor"):
        draw_scene_windows(1, 0, kinds=("smell",))


def test_factors_are_uniform_and_independent() -> None:
    w = draw_scene_windows(4000, seed=3, kinds=())
    factors = (w.r_B, w.u_seismic_B, w.u_acoustic_B)
    for factor in factors:
        shares = np.bincount(factor, minlength=LEVELS) / len(factor)
        assert shares == pytest.approx(np.full(LEVELS, 1 / LEVELS), abs=0.02)
    for i, a in enumerate(factors):
        for b in factors[i + 1 :]:
            assert mutual_information_bits(a, b) < 0.015
    assert set(np.unique(w.node_B)) == {0, 1, 2, 3}
    assert set(np.unique(w.site_B)) == {0, 1}


def test_parity_is_nothing_from_either_factor_and_one_bit_from_both() -> None:
    w = draw_scene_windows(4000, seed=3, kinds=())
    for factor in (w.r_B, w.u_seismic_B, w.u_acoustic_B):
        assert mutual_information_bits(w.parity_B, factor) < 0.01
    both = w.u_seismic_B * LEVELS + w.u_acoustic_B
    assert mutual_information_bits(w.parity_B, both) == pytest.approx(1.0, abs=0.005)


def test_spectra_peak_where_the_factors_say() -> None:
    w = draw_scene_windows(100, seed=11, snr_db=(20.0, 20.0), dropout=0.0)
    hits = {"r": 0, "u_seismic": 0, "u_acoustic": 0}
    for b in range(100):
        acoustic = np.abs(np.fft.rfft(w.x["acoustic"][b, 0]))
        seismic = np.abs(np.fft.rfft(w.x["seismic"][b, 0]))
        f_acoustic, f_seismic = np.fft.rfftfreq(16000, 1 / 8000), np.fft.rfftfreq(200, 1 / 100)
        comb = [sum(_near(acoustic, f_acoustic, h * f, 0.5) for h in (1, 2, 3)) for f in FUNDAMENTAL_HZ]
        hits["r"] += int(np.argmax(comb)) == w.r_B[b]
        bands = [_near(acoustic, f_acoustic, f, 0.1 * f) for f in FORMANT_HZ]
        hits["u_acoustic"] += int(np.argmax(bands)) == w.u_acoustic_B[b]
        # The harmonics stand in the seismic band, too: leave their bins out.
        fundamental = FUNDAMENTAL_HZ[w.r_B[b]]
        free = np.abs(f_seismic / fundamental - np.round(f_seismic / fundamental)) * fundamental > 1.0
        low = [_near(seismic * free, f_seismic, f, max(0.08 * f, 0.6)) for f in RESONANCE_HZ]
        hits["u_seismic"] += int(np.argmax(low)) == w.u_seismic_B[b]
    # Chance is 0.125.
    assert hits["r"] > 0.9 * 100 and hits["u_acoustic"] > 0.95 * 100 and hits["u_seismic"] > 0.6 * 100


def _near(spectrum: NDArray[np.float64], f: NDArray[np.float64], centre_hz: float, reach_hz: float) -> float:
    return float(np.mean(spectrum[np.abs(f - centre_hz) <= reach_hz]))


def test_snr_is_in_its_range_and_noise_is_what_makes_it(windows: SceneWindows) -> None:
    for kind in ("seismic", "acoustic"):
        assert windows.snr_db[kind].min() >= -5 and windows.snr_db[kind].max() <= 20
        assert windows.snr_db[kind].std() > 6  # uniform over 25 dB: 7.2
    loud = draw_scene_windows(40, seed=5, snr_db=(60.0, 60.0), dropout=0.0, kinds=("acoustic",))
    noisy = draw_scene_windows(40, seed=5, snr_db=(3.0, 3.0), dropout=0.0, kinds=("acoustic",))
    # The same draw but for the noise, which adds its power.
    ratio = np.mean(_power(noisy.x["acoustic"])) / np.mean(_power(loud.x["acoustic"]))
    assert ratio == pytest.approx(1 + 10**-0.3, rel=0.05)


def _power(x_BCN: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray((x_BCN**2).mean(axis=(1, 2)))


def test_gain_varies_and_some_windows_drop_out(windows: SceneWindows) -> None:
    level_db = 10 * np.log10(_power(windows.x["seismic"]))
    assert 3 < np.ptp(np.percentile(level_db, [5, 95])) < 25
    share = windows.dropped["acoustic"].mean()
    assert 0.01 < share < 0.1
    dropped = windows.x["acoustic"][windows.dropped["acoustic"]]
    assert ((dropped == 0).sum(axis=2) > 300).all()


def test_held_out_combinations_are_a_fifth_and_stay_the_same() -> None:
    held = held_out_factors(seed=1)
    assert held.shape == (8, 8, 8) and held.sum() == 102
    np.testing.assert_array_equal(held, held_out_factors(seed=1))


def test_a_restarted_scene_reads_the_same_samples_in_any_cut() -> None:
    scene = ContinuousScene(4, NODES)
    for spec in scene.streams():
        step_ns = round(NS_PER_S / spec.rate_hz)
        n = round(2.5 * spec.rate_hz)
        whole = scene.read(spec.id, START_NS + 3 * step_ns, n)
        assert whole.shape == (len(spec.channels), n)
        assert whole.dtype.name in ("int16", "int32")
        again = ContinuousScene(4, NODES)
        cuts = [0, 1, n // 3, n // 2 + 1, n]
        parts = [again.read(spec.id, START_NS + (3 + a) * step_ns, b - a) for a, b in itertools.pairwise(cuts)]
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
        assert not np.array_equal(ContinuousScene(5, NODES).read(spec.id, START_NS, n), whole)


def test_block_borders_cannot_be_seen() -> None:
    quiet = ContinuousScene(4, NODES, width_s=0.001, snr_db=0.0)  # noise alone
    x_N = quiet.read(StreamId("road", "near", "acoustic"), START_NS, 30 * 8000)[0].astype(float)
    jumps_N = np.abs(np.diff(x_N))
    assert jumps_N[7999::8000].mean() < 1.5 * jumps_N.mean()
    seconds = x_N.reshape(30, 8000)
    assert seconds[:, :400].std() == pytest.approx(seconds[:, 3800:4200].std(), rel=0.2)


def test_a_vehicle_is_loudest_when_it_is_closest_by_each_nodes_own_clock() -> None:
    scene = ContinuousScene(4, NODES, snr_db=25.0)
    near, far = NODES[0], NODES[1]
    vehicle = scene.passes("road", START_NS + 40 * NS_PER_S, START_NS + 60 * NS_PER_S)[0]
    assert vehicle.closest_ns(near) != vehicle.closest_ns(far)
    for node in (near, far):
        shown_ns = vehicle.closest_ns(node) + round(node.clock_offset_s * NS_PER_S)
        x_N = scene.read(StreamId("road", node.node, "acoustic"), shown_ns - 8 * NS_PER_S, 16 * 8000)[0]
        power_S = (x_N.astype(float) ** 2).reshape(-1, 800).mean(axis=1)
        centre_s = np.sum(power_S * (np.arange(160) + 0.5) * 0.1) / np.sum(power_S) - 8.0
        assert abs(centre_s) < 0.5
        assert power_S[70:90].mean() > 20 * power_S[:10].mean()


def test_nodes_of_one_site_hear_one_source_shifted_by_their_clocks() -> None:
    right = SceneNode("road", "a")
    late = SceneNode("road", "b", clock_offset_s=0.18)
    scene = ContinuousScene(1, [right, late], snr_db=40.0)
    vehicle = scene.passes("road", START_NS, START_NS + 20 * NS_PER_S)[0]
    start_ns = vehicle.closest_ns(right) - NS_PER_S
    a_N, b_N = (scene.read(StreamId("road", name, "acoustic"), start_ns, 16000)[0].astype(float) for name in "ab")
    low = np.fft.rfftfreq(16000, 1 / 8000) < 500  # the harmonics: formant noise is each node's own
    spectrum_F = np.fft.rfft(a_N) * low
    correlation = np.fft.irfft(np.conj(spectrum_F) * np.fft.rfft(b_N) * low)
    period = 8000 / FUNDAMENTAL_HZ[vehicle.factors.r]
    lag = (float(np.argmax(correlation)) + 8000) % 16000 - 8000  # the correlation is circular
    # The source is periodic, so the lag is known up to whole periods.
    error = (lag - 0.18 * 8000 + period / 2) % period - period / 2
    assert abs(error) < 8


def test_unknown_streams_are_refused() -> None:
    with pytest.raises(DataError, match="no such stream"):
        ContinuousScene(1, NODES).read(StreamId("yard", "lone", "acoustic"), START_NS, 10)


def test_counts_stay_inside_their_type() -> None:
    scene = ContinuousScene(4, NODES)
    for spec in scene.streams():
        x_CN = scene.read(spec.id, START_NS, round(20 * spec.rate_hz))
        limit = np.iinfo(SENSORS[spec.kind].dtype).max
        assert np.abs(x_CN.astype(np.int64)).max() < limit
        assert np.ptp(x_CN, axis=1).min() > 20
