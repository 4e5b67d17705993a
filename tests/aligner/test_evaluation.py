"""Scores, monitors, the linear head and the baselines against known values."""

import numpy as np
import pytest
import torch

from aligner.baselines import fit_ridge_map, pseudolabel
from aligner.closed_form import ridge_cca
from aligner.evaluation import effective_rank, macro_f1, mean_cosine, score
from aligner.head import fit_linear_head
from aligner.heads import Compression
from aligner.monitors import measure
from infomae_stream.errors import DataError

FIT = {"l2": 1e-3, "iterations": 60}


def blobs(count: int, seed: int, classes: int = 3, shift: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = rng.integers(classes, size=count)
    return (rng.normal(size=(count, 5)) + shift * np.eye(classes, 5)[label]).astype(np.float32), label.astype(np.int64)


def test_effective_rank_at_analytic_values() -> None:
    rng = np.random.default_rng(0)
    q, _ = np.linalg.qr(rng.normal(size=(200, 8)) - rng.normal(size=(200, 8)).mean(axis=0))
    centred = (q - q.mean(axis=0)).astype(np.float32)
    assert effective_rank(centred) == pytest.approx(8.0, abs=0.05)
    line = np.outer(np.arange(50.0), [1.0, 2.0, 3.0]).astype(np.float32)
    assert effective_rank(line) == pytest.approx(1.0, abs=1e-4)
    assert effective_rank(np.full((50, 4), 3.7, np.float32)) == 0.0
    two = np.array([[1, 0], [-1, 0], [0, 3], [0, -3]], np.float32)
    share = np.array([0.25, 0.75])
    assert effective_rank(two) == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-5)


def test_macro_f1_weighs_classes_alike_and_skips_absent_ones() -> None:
    truth = np.array([0, 0, 0, 0, 1, 1])
    guess = np.array([0, 0, 0, 1, 1, 0])
    by_hand = (2 * 3 / (2 * 3 + 1 + 1) + 2 * 1 / (2 * 1 + 1 + 1)) / 2
    assert macro_f1(truth, guess, 2) == pytest.approx(by_hand)
    assert macro_f1(truth, guess, 5) == pytest.approx(by_hand)
    assert np.isnan(macro_f1(truth[:0], guess[:0], 2))


def test_the_interval_resamples_people_and_unknown_truth_is_left_out() -> None:
    truth = np.tile([0, 1, -1], 40)
    person = np.repeat(["p1", "p2", "p3", "p4"], 30)
    guess = np.where(person == "p1", 1 - truth, truth).clip(0, 1)
    result = score(truth, guess, person, ("no", "yes"))
    assert result.windows == 80
    assert result.macro_f1 == pytest.approx(0.75)
    assert result.low < 0.5 < 0.95 < result.high
    perfect = score(truth, truth.clip(0), person, ("no", "yes"))
    assert perfect.interval == (1.0, 1.0)


def test_the_head_reaches_the_optimum_and_rare_classes_count() -> None:
    x, y = blobs(400, 0)
    rare = np.r_[np.flatnonzero(y != 2), np.flatnonzero(y == 2)[:6]]
    head = fit_linear_head(x[rare], y[rare], 4, **FIT)
    x_new, y_new = blobs(600, 1)
    assert macro_f1(y_new, head.predict(x_new), 3) > 0.9
    assert (head.predict(x_new) != 3).all()
    np.testing.assert_array_equal(fit_linear_head(x[rare], y[rare], 4, **FIT).weight_YD, head.weight_YD)


def test_the_penalty_of_the_head_shrinks_its_weights() -> None:
    x, y = blobs(200, 0)
    loose, tight = (fit_linear_head(x, y, 3, l2=l2, iterations=60).weight_YD for l2 in (1e-3, 1.0))
    assert np.abs(tight).sum() < 0.5 * np.abs(loose).sum()


def test_the_head_ignores_unknown_labels_and_refuses_one_class() -> None:
    x, y = blobs(200, 0)
    poisoned = np.concatenate([x, 100.0 * np.ones_like(x)])
    labels = np.concatenate([y, np.full(len(y), -1)])
    np.testing.assert_allclose(
        fit_linear_head(poisoned, labels, 3, **FIT).weight_YD, fit_linear_head(x, y, 3, **FIT).weight_YD
    )
    with pytest.raises(DataError, match="fewer than two classes"):
        fit_linear_head(x, np.zeros(len(x), np.int64), 3, **FIT)


def test_ridge_map_recovers_a_planted_map_and_shrinks_noise() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 6)).astype(np.float32)
    planted = rng.normal(size=(6, 4))
    sequence = np.repeat(np.arange(30), 10)
    y = (x @ planted + 2.0 + 0.01 * rng.normal(size=(300, 4))).astype(np.float32)
    weight, bias = fit_ridge_map(x, y, sequence)
    np.testing.assert_allclose(weight, planted, atol=0.02)
    np.testing.assert_allclose(bias, 2.0, atol=0.02)
    weight, _ = fit_ridge_map(x, rng.normal(size=(300, 4)).astype(np.float32), sequence)
    assert np.abs(weight).max() < 0.05


def test_pseudolabels_use_known_labels_first() -> None:
    x, y = blobs(300, 0)
    honest = fit_linear_head(x, y, 3, **FIT)
    swapped = (y + 1) % 3
    head = pseudolabel(honest, x, swapped, x, 3, **FIT)
    assert macro_f1(swapped, head.predict(x), 3) > 0.9
    head = pseudolabel(honest, x, np.full(300, -1), x, 3, **FIT)
    assert macro_f1(y, head.predict(x), 3) > 0.9


def test_cca_finds_the_planted_common_part() -> None:
    draws = torch.Generator().manual_seed(0)
    common = torch.randn(4000, 2, generator=draws)
    mixing = [torch.randn(6, 6, generator=draws) for _ in range(2)]
    noise = [torch.randn(4000, 4, generator=draws) for _ in range(2)]
    e = [torch.cat([common * torch.tensor([1.0, 1.0]), n], dim=1) @ m for n, m in zip(noise, mixing, strict=True)]
    w1, b1, w2, b2, rho = ridge_cca(e[0], e[1], 4, ridge=1e-6)
    assert rho[:2].min() > 0.99
    assert rho[2:].max() < 0.1
    u = [e[0] @ w1.T + b1, e[1] @ w2.T + b2]
    assert mean_cosine(u[0][:, :2].numpy(), u[1][:, :2].numpy()) > 0.99
    assert u[0].mean(dim=0).abs().max() < 1e-3


def test_compression_gives_uncorrelated_unit_directions() -> None:
    draws = torch.Generator().manual_seed(0)
    r = torch.randn(500, 20, generator=draws) @ torch.randn(20, 30, generator=draws) + 5.0
    layer = Compression(30, 10)
    layer.fit(r)
    e = layer(r)
    torch.testing.assert_close(e.T @ e / len(e), torch.eye(10), atol=1e-2, rtol=0)
    narrow = Compression(30, 10)
    narrow.fit(r[:4])
    assert torch.isfinite(narrow(r)).all()
    assert narrow(r)[:, 3:].abs().max() == 0.0


def test_monitors_warn_of_each_planted_failure() -> None:
    rng = np.random.default_rng(0)
    u = rng.normal(size=(100, 8)).astype(np.float32)
    pairs = {("a", "b"): np.stack([np.arange(100)] * 2, axis=1)}

    def warnings(a: np.ndarray, b: np.ndarray) -> str:
        return " / ".join(measure({"a": a, "b": b}, {"a": u, "b": u}, pairs, {}, 0, seed=0).warnings)

    assert warnings(u, u + 0.1) == ""
    assert "a.u: effective rank" in warnings(np.outer(u[:, 0], np.ones(8)).astype(np.float32), u)
    assert "norms shrink" in warnings(1e-3 * u, 1e-3 * u)
    assert "no better than shuffled" in warnings(u, rng.normal(size=(100, 8)).astype(np.float32))
    assert "a.u" in warnings(np.zeros((100, 8), np.float32), u)
    assert "a.u" in warnings(np.full((100, 8), np.nan, np.float32), u)
