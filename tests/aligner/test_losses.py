"""Loss terms against slow loop forms and analytic values."""

import math

import pytest
import torch

from aligner.losses.contrast import CrossNce, NtXent
from aligner.losses.spread import decorrelation, variance_hinge
from aligner.losses.temporal import TemporalLocality
from aligner.masking import masked_mse, pixel_mask, window_mask
from tests.aligner.laws import generator


def unit(row: torch.Tensor) -> torch.Tensor:
    return row / row.norm()


def test_nt_xent_equals_the_slow_loop() -> None:
    draws = generator(0)
    a, b = torch.randn(5, 3, generator=draws), torch.randn(5, 3, generator=draws)
    views, total = [*a, *b], 0.0
    for i in range(10):
        partner = (i + 5) % 10
        similar = [math.exp(float(unit(views[i]) @ unit(views[j])) / 0.2) for j in range(10)]
        total -= math.log(similar[partner] / sum(s for j, s in enumerate(similar) if j != i))
    assert NtXent(0.2)(a, b).item() == pytest.approx(total / 10, rel=1e-5)


def test_nt_xent_at_chance_and_at_its_best() -> None:
    same = torch.ones(4, 3)
    assert NtXent(0.5)(same, same).item() == pytest.approx(math.log(7), rel=1e-6)
    apart = torch.eye(4)
    assert NtXent(0.05)(apart, apart).item() < 1e-6


def test_nt_xent_gradient_is_the_numeric_one() -> None:
    draws = generator(1)
    a = torch.randn(4, 3, generator=draws, dtype=torch.double, requires_grad=True)
    b = torch.randn(4, 3, generator=draws, dtype=torch.double)
    assert torch.autograd.gradcheck(lambda x: NtXent(0.3)(x, b), (a,))


def test_cross_nce_leaves_out_neighbours_in_time() -> None:
    draws = generator(2)
    a, b = torch.randn(4, 3, generator=draws), torch.randn(4, 3, generator=draws)
    sequence = torch.tensor([0, 0, 1, 2])
    total = 0.0
    for i in range(4):
        for left, right in ((a, b), (b, a)):
            allowed = [j for j in range(4) if j == i or sequence[j] != sequence[i]]
            similar = {j: math.exp(float(unit(left[i]) @ unit(right[j])) / 0.2) for j in allowed}
            total -= math.log(similar[i] / sum(similar.values())) / 8
    got = CrossNce(0.2)(a, b, sequence[:, None] == sequence[None, :])
    assert got.item() == pytest.approx(total, rel=1e-5)


def test_temporal_locality_equals_the_slow_loop() -> None:
    h = torch.randn(7, 3, generator=generator(3))
    sequence = torch.tensor([0, 0, 0, 1, 1, 2, 2])
    total = 0.0
    for i in range(7):
        near = [float((unit(h[i]) - unit(h[j])).norm()) for j in range(7) if j != i and sequence[j] == sequence[i]]
        far = [float((unit(h[i]) - unit(h[j])).norm()) for j in range(7) if sequence[j] != sequence[i]]
        total += max(0.0, sum(near) / len(near) - sum(far) / len(far) + 1.0) / 7
    assert TemporalLocality()(h, sequence).item() == pytest.approx(total, rel=1e-4)


def test_temporal_locality_is_met_by_direction_not_by_norm() -> None:
    tight = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
    sequence = torch.tensor([0, 0, 1, 1])
    assert TemporalLocality()(tight, sequence).item() == 0.0
    assert TemporalLocality()(torch.ones(4, 2) * torch.tensor([[1.0], [9.0], [50.0], [99.0]]), sequence).item() > 0.9


def test_temporal_locality_of_lonely_windows_is_zero_with_a_gradient() -> None:
    h = torch.randn(3, 2, requires_grad=True)
    TemporalLocality()(h, torch.tensor([0, 1, 2])).backward()
    assert h.grad is not None
    assert torch.isfinite(h.grad).all()


def test_spread_terms_at_known_values() -> None:
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]) * math.sqrt(3.0) / 2.0
    assert variance_hinge(signs).item() == pytest.approx(0.0, abs=1e-3)
    assert decorrelation(signs).item() == pytest.approx(0.0, abs=1e-6)
    line = signs[:, :1].expand(-1, 2)
    assert decorrelation(line).item() == pytest.approx(1.0, rel=1e-5)
    assert variance_hinge(torch.zeros(4, 2)).item() == pytest.approx(0.99, abs=1e-6)


def test_masked_error_counts_hidden_places_only() -> None:
    target = torch.zeros(1, 2, 2, 2)
    hidden = torch.tensor([[[True, False], [False, False]]])
    wrong_where_visible = torch.full_like(target, 100.0)
    wrong_where_visible[:, :, 0, 0] = 3.0
    assert masked_mse(wrong_where_visible, target, hidden).item() == pytest.approx(9.0)
    assert masked_mse(wrong_where_visible, target, torch.zeros(1, 2, 2, dtype=torch.bool)).item() == 0.0


def test_masks_hide_whole_units_at_the_asked_ratio() -> None:
    mask = window_mask(50, (8, 4), (2, 2), 0.75, generator())
    assert mask.shape == (50, 32)
    assert mask.float().mean().item() == 0.75
    blocks = mask.view(50, 4, 2, 2, 2).float().mean(dim=(2, 4))
    assert set(blocks.unique().tolist()) == {0.0, 1.0}
    assert len(mask.unique(dim=0)) > 10


def test_padding_beyond_the_spectrogram_is_not_in_the_mask_of_places() -> None:
    mask = torch.ones(2, 6, dtype=torch.bool)
    assert pixel_mask(mask, (2, 3), (2, 2), (3, 5)).shape == (2, 3, 5)
