"""Every module in a folder of components is registered, and every registered component constructs and runs a step."""

import copy
import importlib
import math
import pkgutil
from types import ModuleType

import pytest
import torch

import aligner.encoders
import aligner.information
import aligner.objectives
from aligner.config import EncoderConfig
from aligner.encoders import ENCODERS, encoder_class
from aligner.information import ESTIMATORS, estimator_class
from aligner.information.discriminator import PairSamples
from aligner.masked_decoder import MirroredDecoder
from aligner.model import Model
from aligner.objectives import OBJECTIVES, objective_class
from aligner.progress import silent
from aligner.registry import resolve
from aligner.train import align_and_fit, pretrain_all
from aligner.trainset import TrainSet
from infomae_stream.errors import ConfigError
from tests.aligner.laws import generator, planted, small_config

SHAPE = (4, 6, 5)


@pytest.mark.parametrize(
    ("package", "table"),
    [(aligner.encoders, ENCODERS), (aligner.objectives, OBJECTIVES), (aligner.information, ESTIMATORS)],
)
def test_every_module_in_the_folder_is_registered(package: ModuleType, table: dict[str, str]) -> None:
    modules = {f"{package.__name__}.{module.name}" for module in pkgutil.iter_modules(package.__path__)}
    assert {target.split(":")[0] for target in table.values()} == modules
    for target in table.values():
        module, attribute = target.split(":")
        assert getattr(importlib.import_module(module), attribute).__doc__


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'swin'"):
        resolve(ENCODERS, "swim", "train.encoder.name")


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_encoder_embeds_hides_and_learns(name: str) -> None:
    torch.manual_seed(0)
    encoder = encoder_class(name)(SHAPE, EncoderConfig(name=name, width=16, heads=2))
    x = torch.randn(3, *SHAPE)
    mask = torch.zeros(3, encoder.grid[0] * encoder.grid[1], dtype=torch.bool)
    mask[:, 0] = True
    assert encoder(x).shape == encoder(x, mask).shape == (3, encoder.embedding_width)
    decoded = MirroredDecoder(encoder, 2)(encoder.tokens(x, mask))
    assert decoded.shape == x.shape
    decoded.square().mean().backward()
    reached = [p.grad is not None for p in encoder.stages.parameters()]
    assert all(reached)


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_estimator_takes_a_critic_step_and_a_model_step(name: str) -> None:
    torch.manual_seed(0)
    estimator = estimator_class(name)((SHAPE, SHAPE), 4, 3)
    x = torch.randn(12, *SHAPE)
    u, v = torch.randn(12, 4, requires_grad=True), torch.randn(12, 3, requires_grad=True)
    samples = PairSamples(x, x, u, u, v, v, torch.arange(12) // 2)
    losses = estimator.critic_loss(samples, generator())
    assert set(losses) == set(estimator.ratios)
    if list(estimator.parameters()):  # a closed form has no critics: its losses are numbers to log
        torch.stack(list(losses.values())).sum().backward()
    ratio = estimator.log_ratios(samples)
    (estimator.shared(ratio, 0.05) + estimator.private(ratio, 0.1, 0.1)).backward()
    assert u.grad is not None
    assert v.grad is not None
    assert all(isinstance(value, float) for value in estimator.constancy(ratio).values())


@pytest.fixture(scope="module")
def stage_one() -> tuple[TrainSet, Model]:
    train = planted(people=2)
    return train, pretrain_all(train, small_config(), silent)


def takes_an_estimator(name: str, model: Model) -> bool:
    try:
        objective_class(name).build(copy.deepcopy(model), [("a", "b")], {"estimator": "discriminator"}, generator())
    except ConfigError as error:
        if "options.estimator" not in str(error):
            raise
        return False
    return True


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_objective_aligns_and_with_every_estimator_if_it_takes_one(
    name: str, stage_one: tuple[TrainSet, Model]
) -> None:
    assert objective_class(name).__doc__
    train, model = stage_one
    informed = takes_an_estimator(name, model)
    for options in [{"estimator": estimator} for estimator in sorted(ESTIMATORS)] if informed else [{}]:
        config = small_config(objective=name, steps=3, critic_warm_up=1, options=options)
        _, report = align_and_fit(model, train, config, silent)
        assert report.objective == name
        assert report.losses
        assert all(math.isfinite(value) for value in report.losses.values())
        assert report.monitors.skipped_steps == 0


def test_the_estimator_is_an_option_of_objectives_that_read_information(stage_one: tuple[TrainSet, Model]) -> None:
    informed = {name for name in OBJECTIVES if takes_an_estimator(name, stage_one[1])}
    assert "infomae" in informed
    assert not informed & {"cmc", "concat", "focal", "gmc", "moco", "simclr", "tnc"}
