"""Distances between two sets of images as sets of feature vectors: Fréchet (FID) and kernel (KID).

With the features of the Inception network of 2015 they are the published FID and KID; with those of other networks they
are figures of the same kind that only compare with each other.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vlm.errors import DataError

SUBSETS = 100
SUBSET_SIZE = 1000  # of each set, or all where there are fewer


class KernelDistance(NamedTuple):
    """Mean and standard deviation over subsets, as papers print them, and the size of those subsets."""

    mean: float
    deviation: float
    subset_size: int


def frechet_distance(a: ArrayLike, b: ArrayLike) -> float:
    """FID: the squared Fréchet distance between Gaussians fitted to two sets (Heusel et al., 2017, equation 6).

    `|mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^(1/2))`. It is too large for small sets, the more so the
    wider the features: papers take 10,000 images or more of each, and the same number for figures to be compared.

    Args:
        a: features, `[images, dim]`, two rows or more.
        b: `[images, dim]`.

    Raises:
        DataError: shapes that do not fit, too few images, or a number that is not finite.
    """
    ours, theirs = _check(a, b)
    return gaussian_distance(*_gaussian(ours), *_gaussian(theirs))


def _gaussian(features: NDArray) -> tuple[NDArray, NDArray]:
    """Mean and unbiased covariance of the rows: `[dim]`, `[dim, dim]`."""
    mean = features.mean(0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)


def gaussian_distance(mean_a: NDArray, covariance_a: NDArray, mean_b: NDArray, covariance_b: NDArray) -> float:
    """The squared Fréchet distance between two Gaussians: means `[dim]`, covariances `[dim, dim]`.

    The trace of the root of `cov_a cov_b` is that of the root of `A cov_b A` with `A` the root of `cov_a`. That one is
    symmetric, so that eigenvalues are real and rank-deficient covariances (fewer images than dimensions) do no harm.
    """
    values, vectors = np.linalg.eigh(covariance_a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    product = root @ covariance_b @ root
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh((product + product.T) / 2), 0)).sum()
    between = float(((mean_a - mean_b) ** 2).sum())
    return between + float(np.trace(covariance_a) + np.trace(covariance_b) - 2 * shared)


def kernel_distance(
    a: ArrayLike, b: ArrayLike, rng: np.random.Generator, subsets: int = SUBSETS, subset_size: int = SUBSET_SIZE
) -> KernelDistance:
    """KID: the unbiased squared maximum mean discrepancy with a cubic kernel (Binkowski et al., 2018).

    The mean over random subsets, drawn without replacement; the mean does not depend on their size, and it is near 0,
    on either side, where both sets are of one kind.

    Args:
        a: features, `[images, dim]`, two rows or more.
        b: `[images, dim]`.
        rng: draws the subsets.
        subsets: how many.
        subset_size: images of each set in a subset; smaller sets are taken whole.

    Raises:
        DataError: as `frechet_distance`.
    """
    ours, theirs = _check(a, b)
    size = min(subset_size, len(ours), len(theirs))
    found = [
        squared_mmd(ours[rng.choice(len(ours), size, False)], theirs[rng.choice(len(theirs), size, False)])
        for _ in range(subsets)
    ]
    return KernelDistance(float(np.mean(found)), float(np.std(found)), size)


def squared_mmd(a: NDArray, b: NDArray) -> float:
    """The unbiased estimate with the kernel `(x·y / dim + 1)^3`: pairs of an image with itself are left out."""

    def kernel(x: NDArray, y: NDArray) -> NDArray:
        return (x @ y.T / x.shape[1] + 1) ** 3  # [images, images]

    def within(x: NDArray) -> float:
        values = kernel(x, x)
        return (values.sum() - np.trace(values)) / (len(x) * (len(x) - 1))

    return float(within(a) + within(b) - 2 * kernel(a, b).mean())


def _check(a: ArrayLike, b: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    ours, theirs = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if ours.ndim != 2 or theirs.ndim != 2 or ours.shape[1] != theirs.shape[1]:
        raise DataError(
            f"features of shape {list(ours.shape)} against {list(theirs.shape)}; give [images, dim] of one model"
        )
    if min(len(ours), len(theirs)) < 2:
        raise DataError(f"sets of {len(ours)} and {len(theirs)} images; a distance takes two or more of each")
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        raise DataError("a feature is not finite; check the model")
    return ours, theirs
