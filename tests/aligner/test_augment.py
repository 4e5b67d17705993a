"""Augmentations keep the shape, are drawn from the generator alone, and do what they say."""

import pytest
import torch

from aligner.augment import AUGMENTATIONS, KEEPING_ORDER, augment
from aligner.batches import SequenceSampler
from infomae_stream.errors import DataError
from tests.aligner.laws import generator


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_shape_is_kept_and_the_draw_is_seeded(name: str) -> None:
    x = torch.randn(6, 4, 9, 8, generator=generator())
    first, again = (AUGMENTATIONS[name](x, generator(3)) for _ in range(2))
    assert first.shape == x.shape
    assert torch.isfinite(first).all()
    assert torch.equal(first, again)
    assert not torch.equal(first, x)


def test_time_warp_keeps_the_ends_and_the_order() -> None:
    ramp = torch.arange(9.0).view(1, 1, 9, 1).expand(5, 2, 9, 3)
    warped = AUGMENTATIONS["time_warp"](ramp, generator())
    torch.testing.assert_close(warped[:, :, [0, 8]], ramp[:, :, [0, 8]], atol=1e-4, rtol=0)
    assert bool((warped.diff(dim=2) > 0).all())


def test_nothing_happens_without_names_or_luck() -> None:
    x = torch.randn(2, 3, 4, 5)
    assert augment(x, (), generator()) is x
    assert augment(x, KEEPING_ORDER, generator(), probability=0.0) is x


def test_a_batch_is_made_of_runs_of_neighbours() -> None:
    import numpy as np

    sequence = np.repeat([7, 3, 9, 4, 5], [10, 6, 2, 8, 4])
    sampler = SequenceSampler(sequence, batch=20, length=4, where="test")
    rows = sampler.draw(generator())
    assert len(rows) >= 18
    for which in np.unique(sequence):
        run = rows[torch.from_numpy(sequence[rows.numpy()] == which)]
        assert (run.diff() == 1).all()
        assert len(run) == min(4, int((sequence == which).sum()))
    with pytest.raises(DataError, match="at least 4"):
        SequenceSampler(sequence[:16], batch=20, length=4, where="test")
