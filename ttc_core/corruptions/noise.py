"""Noise of the sensor: Gaussian, shot and impulse noise. Every channel value on its own.

Source: Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations", ICLR 2019, section 4.1; constants of CIFAR-10-C (32)
and ImageNet-C (224). Each function takes images (N, H, W, 3) uint8, the constants of one
severity and one generator an image, and returns new images of the same shape.
"""

from collections.abc import Sequence

import numpy as np
from numpy.random import Generator

from ttc_core.corruptions.pixels import Constants, Images, Table, to_bytes, to_unit

GAUSSIAN_NOISE: Table = {
    32: ((0.04,), (0.06,), (0.08,), (0.09,), (0.10,)),
    224: ((0.08,), (0.12,), (0.18,), (0.26,), (0.38,)),
}
SHOT_NOISE: Table = {
    32: ((500,), (250,), (100,), (75,), (50,)),
    224: ((60,), (25,), (12,), (5,), (3,)),
}
IMPULSE_NOISE: Table = {
    32: ((0.01,), (0.02,), (0.03,), (0.05,), (0.07,)),
    224: ((0.03,), (0.06,), (0.09,), (0.17,), (0.27,)),
}


def gaussian_noise(images: Images, constants: Constants, generators: Sequence[Generator]) -> Images:
    """Add normal noise; the constant is its standard deviation, 1 being white."""
    (deviation,) = constants
    noise = np.empty(images.shape)
    for row, generator in zip(noise, generators, strict=True):
        generator.standard_normal(out=row)
    return to_bytes(to_unit(images) + deviation * noise)


def shot_noise(images: Images, constants: Constants, generators: Sequence[Generator]) -> Images:
    """Count photons; the constant is how many a white pixel gets on average."""
    (photons,) = constants
    expected = to_unit(images) * photons
    counts = np.empty(images.shape)
    for row, rate, generator in zip(counts, expected, generators, strict=True):
        row[...] = generator.poisson(rate)
    return to_bytes(counts / photons)


def impulse_noise(images: Images, constants: Constants, generators: Sequence[Generator]) -> Images:
    """Salt and pepper; the constant is the probability that a channel value is replaced."""
    (amount,) = constants
    hit = np.empty(images.shape)
    salt = np.empty(images.shape)
    for hit_row, salt_row, generator in zip(hit, salt, generators, strict=True):
        generator.random(out=hit_row)
        generator.random(out=salt_row)
    replacement = np.where(salt <= 0.5, np.uint8(255), np.uint8(0))
    return np.where(hit <= amount, replacement, images)
