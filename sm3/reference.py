"""SM3-I and SM3-II line by line as in the paper's pseudocode, for any cover. Tests use it as the oracle.

It is slow and computes in float64. Source: Anil, Gupta, Koren, Singer: Memory-Efficient Adaptive Optimization, NeurIPS
2019, algorithms SM3-I and SM3-II.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class ReferenceRun:
    """The result of a run of the reference.

    Args:
        weights: w_{T+1}, float64, of the parameter's shape.
        second_moments: nu_t for each step, float64, of the parameter's shape.
        accumulators: mu_t(r) for each step, one float64 number per set.
    """

    weights: Tensor
    second_moments: list[Tensor]
    accumulators: list[list[float]]


def run(
    variant: str,
    weights: Tensor,
    gradients: Iterable[Tensor],
    cover: Sequence[Sequence[int]],
    lr: float,
    momentum: float = 0.0,
    beta: float = 0.0,
    weight_decay: float = 0.0,
) -> ReferenceRun:
    """Run SM3 over a sequence of gradients, index by index.

    Args:
        variant: "I" or "II".
        weights: w_1, of any shape.
        gradients: g_1 ... g_T, each of the same shape as the weights.
        cover: the sets S_r of flat indices.
        lr: the learning rate eta.
        momentum: the weight of the past in the average of the preconditioned gradient; 0 for no momentum.
        beta: the weight of the past in the accumulators; 0 for the sums of the paper.
        weight_decay: the decoupled weight decay.

    Returns:
        The final weights, and the second moments and accumulators of each step.
    """
    shape, w = weights.shape, weights.double().flatten().tolist()
    mu, average = [0.0] * len(cover), [0.0] * len(w)
    containing = [[r for r, members in enumerate(cover) if i in set(members)] for i in range(len(w))]
    result = ReferenceRun(weights, [], [])
    for gradient in gradients:
        g = gradient.double().flatten().tolist()
        nu, mu = (_sm3_i if variant == "I" else _sm3_ii)(g, mu, cover, containing, beta)
        for i, g_i in enumerate(g):
            step = g_i / nu[i] ** 0.5 if nu[i] > 0 else 0.0
            average[i] = momentum * average[i] + (1 - momentum) * step
            w[i] -= lr * weight_decay * w[i] + lr * average[i]
        result.second_moments.append(torch.tensor(nu, dtype=torch.float64).view(shape))
        result.accumulators.append(mu)
    result.weights = torch.tensor(w, dtype=torch.float64).view(shape)
    return result


Moments = tuple[list[float], list[float]]


def _sm3_i(
    g: list[float], mu: list[float], cover: Sequence[Sequence[int]], containing: list[list[int]], beta: float
) -> Moments:
    old, new = (beta, 1 - beta) if beta else (1.0, 1.0)
    mu = [old * mu[r] + new * max(g[j] ** 2 for j in members) for r, members in enumerate(cover)]
    nu = [min(mu[r] for r in sets) for sets in containing]
    return nu, mu


def _sm3_ii(
    g: list[float], mu: list[float], cover: Sequence[Sequence[int]], containing: list[list[int]], beta: float
) -> Moments:
    old, new = (beta, 1 - beta) if beta else (1.0, 1.0)
    nu, mu_next = [], [0.0] * len(cover)
    for i, g_i in enumerate(g):
        nu.append(old * min(mu[r] for r in containing[i]) + new * g_i**2)
        for r in containing[i]:
            mu_next[r] = max(mu_next[r], nu[i])
    return nu, mu_next
