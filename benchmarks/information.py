"""Bias, spread and time of the information estimators on Gaussians whose information is known.

x1 and x2 have `--width` coordinates that correlate by rho, u = x1 + noise of the same variance. Two quantities:

    pair         I(X2;U)     = -1/2 width log(1 - rho^2 / 2)
    conditional  I(X1;X2|U)  = I(X1;X2) - I(X2;U), since u depends on x1 alone

Each estimator sees n rows and no more. The critics learn from one half and are read at the other, and the two readings
are averaged: read where they learned, they memorise. They run as in training (`DiscriminatorEstimator.log_ratios`,
clamped to +-5); the bottleneck has no three-way critic, so no conditional. The closed forms see all n rows at once,
with the directions `subspace_width` gives them. CPU seconds an estimate, one thread. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import Tensor

from aligner.information import estimator_class
from aligner.information.copula import copula_information
from aligner.information.discriminator import PairSamples
from aligner.information.gaussian import gaussian_information

Estimate = dict[str, float]
CLOSED: dict[str, Callable[..., float]] = {"gaussian": gaussian_information, "copula": copula_information}
CRITICS = ("discriminator", "bottleneck")


def truth(rho: float, width: int) -> Estimate:
    pair = -0.5 * width * math.log(1 - rho**2 / 2)
    return {"pair": pair, "conditional": -0.5 * width * math.log(1 - rho**2) - pair}


def draw(rho: float, width: int, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """x1, x2, u, each (count, width)."""
    draws = torch.Generator().manual_seed(seed)
    x1, second, noise = (torch.randn(count, width, generator=draws) for _ in range(3))
    return x1, rho * x1 + math.sqrt(1 - rho**2) * second, x1 + noise


def by_closed_form(name: str, x1: Tensor, x2: Tensor, u: Tensor) -> Estimate:
    estimate = CLOSED[name]
    return {"pair": estimate(x2, u), "conditional": estimate(x1, x2, u)}


def by_critics(name: str, x1: Tensor, x2: Tensor, u: Tensor, steps: int, seed: int) -> Estimate:
    halves = torch.arange(len(u)) % 2
    readings = [_read(name, x1, x2, u, halves == side, steps, seed) for side in (0, 1)]
    return {quantity: float(np.mean([reading[quantity] for reading in readings])) for quantity in readings[0]}


def _read(name: str, x1: Tensor, x2: Tensor, u: Tensor, learned: Tensor, steps: int, seed: int) -> Estimate:
    torch.manual_seed(seed)
    draws = torch.Generator().manual_seed(seed)
    width = u.shape[1]
    estimator = estimator_class(name)(((width, 1, 1), (width, 1, 1)), width, width)
    optimiser = torch.optim.Adam(estimator.parameters(), lr=1e-3, betas=(0.5, 0.9))

    def samples(rows: Tensor) -> PairSamples:
        # u2, v1 and v2 are not asked about: any rows serve.
        shaped = [x[rows].reshape(len(rows), width, 1, 1) for x in (x1, x2)]
        return PairSamples(*shaped, u[rows], u[rows], u[rows], u[rows], torch.arange(len(rows)))

    train, test = torch.nonzero(learned)[:, 0], torch.nonzero(~learned)[:, 0]
    for _ in range(steps):
        rows = train[torch.randperm(len(train), generator=draws)[:64]]
        losses = estimator.critic_loss(samples(rows), draws)
        optimiser.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimiser.step()
    with torch.no_grad():
        ratio = {key: float(value.mean()) for key, value in estimator.log_ratios(samples(test)).items()}
    found = {"pair": ratio["b12"]}
    if "a1" in ratio:
        found["conditional"] = ratio["a1"] - ratio["b11"] - ratio["b12"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rho", type=float, nargs="+", default=[0.0, 0.3, 0.6, 0.9])
    parser.add_argument("--n", type=int, nargs="+", default=[110, 550, 2200])
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=100, help="draws of the data, for the closed forms")
    parser.add_argument("--critic-seeds", type=int, default=5, help="the same for the critics, of data and weights")
    parser.add_argument("--steps", type=int, default=600, help="of the critics")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    print(f"{'estimator':14}{'quantity':13}{'rho':>5}{'n':>6}{'truth':>8}{'bias':>8}{'sd':>7}{'rmse':>7}{'cpu s':>9}")
    for count in args.n:
        for rho in args.rho:
            known = truth(rho, args.width)
            for name in (*CRITICS, *CLOSED):
                found: dict[str, list[float]] = {}
                began = time.process_time()
                seeds = args.seeds if name in CLOSED else args.critic_seeds
                for seed in range(seeds):
                    data = draw(rho, args.width, count, seed)
                    one = by_closed_form(name, *data) if name in CLOSED else by_critics(name, *data, args.steps, seed)
                    for quantity, value in one.items():
                        found.setdefault(quantity, []).append(value)
                cpu_s = (time.process_time() - began) / seeds
                for quantity, values in found.items():
                    bias, sd = float(np.mean(values)) - known[quantity], float(np.std(values))
                    row = {"estimator": name, "quantity": quantity, "rho": rho, "n": count}
                    figures = {"truth": known[quantity], "bias": bias, "sd": sd, "rmse": math.hypot(bias, sd)}
                    rows.append({**row, **{k: round(v, 4) for k, v in figures.items()}, "cpu_s": round(cpu_s, 5)})
                    print(
                        f"{name:14}{quantity:13}{rho:5.1f}{count:6d}{known[quantity]:8.3f}{bias:+8.3f}{sd:7.3f}"
                        f"{math.hypot(bias, sd):7.3f}{cpu_s:9.4f}",
                        flush=True,
                    )
    settings = {key: getattr(args, key) for key in ("width", "seeds", "critic_seeds", "steps")}
    print(json.dumps({**settings, "rows": rows}))


if __name__ == "__main__":
    main()
