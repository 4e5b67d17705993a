"""Estimators of the shared and private information terms (METHOD 3.1-3.3, 4). One module each, one line here."""

from typing import Any

from aligner.registry import resolve

ESTIMATORS = {
    "discriminator": "aligner.information.discriminator:DiscriminatorEstimator",
    "bottleneck": "aligner.information.bottleneck:BottleneckEstimator",
    "gaussian": "aligner.information.gaussian:GaussianEstimator",
    "copula": "aligner.information.copula:CopulaEstimator",
}


def estimator_class(name: str) -> Any:
    """Return the class of estimator `name`; raises ConfigError when there is none."""
    return resolve(ESTIMATORS, name, "train.align.options.estimator")
