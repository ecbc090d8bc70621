"""How far single neurons' pre-activations are from Gaussian, and what the assumption decides."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import ks_2samp, kstest, kurtosis, skew
from torch import Tensor

from custom_modeling.neuron_adjust import adjust, standardisers, thresholds

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

BINS = 32
"""Places of the histogram by which a neuron's two densities are compared; each holds as many fitted tokens."""


def distances(values: Floats, mean: Floats, deviation: Floats) -> Floats:
    """Kolmogorov-Smirnov distance of each neuron's values (n, neurons) to the Gaussian of this mean and deviation."""
    standard = (values - mean) / deviation
    return np.array([kstest(column, "norm", method="asymp").statistic for column in standard.T])


def distances_between(values: Floats, others: Floats) -> Floats:
    """The same of two samples (n, neurons) and (m, neurons) of the same neurons."""
    pairs = zip(values.T, others.T, strict=True)
    return np.array([ks_2samp(one, other, method="asymp").statistic for one, other in pairs])


def shape(fit: Floats, test: Floats, mean: Floats, deviation: Floats) -> dict[str, Floats]:
    """Of each neuron, how Gaussian its values (n, neurons) over test texts are.

    mean, deviation: as Neuron Adjust fits them; fit: the values over the texts that they are of, without position 0.
    """
    return {
        "distance": distances(test, mean, deviation),
        "distance_refitted": distances(test, fit.mean(0), fit.std(0, ddof=1)),
        "distance_to_fit": distances_between(test, fit),
        "skewness": np.abs(skew(test, axis=0)),
        "kurtosis": np.asarray(kurtosis(test, axis=0)),
    }


def looks_forgotten(values: Floats, params: Tensor) -> Flags:
    """Where the log-likelihood ratio d of the two Gaussians is above 0, by the runtime. params: (4, neurons)."""
    params = params.float()
    own = torch.from_numpy(values).float()
    # With draws of a half, what is moved is what has d > 0; at any position but 0.
    threshold = thresholds(params, None, torch.ones(len(own)))
    moved = adjust(own.clone(), torch.arange(own.shape[1]), threshold, *standardisers(params)) != own
    return np.asarray(moved.numpy())


def looks_forgotten_by_histogram(values: Floats, forget: Floats, retain: Floats) -> Flags:
    """Where a neuron's value is in a place that holds a greater share of its values over forget texts than over retain
    texts. values, forget, retain: (n, neurons)."""
    found = np.zeros(values.shape, dtype=bool)
    for neuron in range(values.shape[1]):
        both = np.concatenate([forget[:, neuron], retain[:, neuron]])
        edges = np.quantile(both, np.arange(1, BINS) / BINS)
        shares = [
            np.bincount(np.searchsorted(edges, side[:, neuron]), minlength=BINS) / len(side)
            for side in (forget, retain)
        ]
        found[:, neuron] = (shares[0] > shares[1])[np.searchsorted(edges, values[:, neuron])]
    return found


def decisions(fit: tuple[Floats, Floats], test: tuple[Floats, Floats], params: Tensor) -> dict[str, Floats]:
    """Of each neuron, what Gaussians and histograms of the fit texts say of test tokens, (forget, retain) each.

    agree: share of tokens of which both say the same; right_gaussian, right_histogram: that are put on their own side.
    Both sides count the same.
    """
    gaussian = [looks_forgotten(values, params) for values in test]
    histogram = [looks_forgotten_by_histogram(values, *fit) for values in test]

    def balanced(forget: Flags, retain: Flags) -> Floats:
        return np.asarray((forget.mean(0) + retain.mean(0)) / 2)

    return {
        "agree": balanced(*(one == other for one, other in zip(gaussian, histogram, strict=True))),
        "right_gaussian": balanced(gaussian[0], ~gaussian[1]),
        "right_histogram": balanced(histogram[0], ~histogram[1]),
    }


def expected_agreement(fit: tuple[Floats, Floats], test: tuple[Floats, Floats], params: Tensor, seed: int) -> Floats:
    """`agree` of as many values that are drawn from the two Gaussians: what histograms of so few leave of 1."""
    random: Any = np.random.default_rng(seed)
    mu_f, sd_f, mu_r, sd_r = params.double().numpy()

    def drawn(sides: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
        forget, retain = sides
        return random.normal(mu_f, sd_f, forget.shape), random.normal(mu_r, sd_r, retain.shape)

    return decisions(drawn(fit), drawn(test), params)["agree"]
