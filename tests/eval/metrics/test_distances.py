"""FID against closed forms and KID against the double sum of its definition; both against torch-fidelity."""

import numpy as np
import pytest

from eval.metrics.distances import frechet_distance, gaussian_distance, kernel_distance, squared_mmd
from vlm.errors import DataError


def features(seed: int, images: int, dim: int = 4, shift: float = 0.0) -> np.ndarray:
    return np.abs(np.random.default_rng(seed).normal(shift, 1, (images, dim)))


def test_gaussians_with_axes_in_common():
    # (3 - 0)^2 + (0 - 4)^2 + (2 - 1)^2 + (5 - 3)^2, the last two of standard deviations
    a, b = (np.array([3.0, 0]), np.diag([4.0, 25])), (np.array([0, 4.0]), np.diag([1.0, 9]))
    assert gaussian_distance(*a, *b) == pytest.approx(30)
    assert gaussian_distance(*b, *a) == pytest.approx(30)
    assert gaussian_distance(*a, *a) == pytest.approx(0, abs=1e-9)


def test_gaussians_whose_covariances_do_not_commute():
    a, b = np.array([[2.0, 1], [1, 2]]), np.array([[1.0, 0], [0, 5]])
    # of a 2 x 2 matrix: tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)); tr(ab) = 12, det(ab) = 3 * 5
    expected = 4 + 6 - 2 * np.sqrt(12 + 2 * np.sqrt(15))
    assert gaussian_distance(np.zeros(2), a, np.zeros(2), b) == pytest.approx(expected)


def test_fewer_images_than_features():
    # both sets vary along one axis only: variances 2 and 8 about means 0 and 0, so (sqrt(8) - sqrt(2))^2 = 2
    a, b = np.zeros((2, 50)), np.zeros((2, 50))
    a[:, 3], b[:, 3] = [-1, 1], [-2, 2]
    assert frechet_distance(a, b) == pytest.approx(2)


def kernel(x: np.ndarray, y: np.ndarray) -> float:
    return (float(sum(p * q for p, q in zip(x, y, strict=True))) / len(x) + 1) ** 3


def test_kernel_distance_by_the_double_sum():
    a, b = features(0, 6), features(1, 5, shift=0.5)
    within = [
        sum(kernel(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j) / (len(x) * (len(x) - 1))
        for x in (a, b)
    ]
    expected = sum(within) - 2 * sum(kernel(x, y) for x in a for y in b) / (len(a) * len(b))
    assert squared_mmd(a, b) == pytest.approx(expected)


def test_subsets_are_drawn_without_replacement_and_average_to_the_whole():
    a, b = features(0, 40), features(1, 30, shift=0.5)
    assert kernel_distance(a, b, np.random.default_rng(0), subsets=2).subset_size == 30  # all there are
    parts = kernel_distance(a, b, np.random.default_rng(0), subsets=2000, subset_size=10)
    # the estimate is unbiased: the mean over subsets is that of the whole, within three standard errors
    assert abs(parts.mean - squared_mmd(a, b)) < 3 * parts.deviation / np.sqrt(2000)
    same = kernel_distance(a, a, np.random.default_rng(0), subsets=5)
    assert same.deviation == pytest.approx(0, abs=1e-9) and same.mean < 0  # a set against itself is closer than chance


def test_against_torch_fidelity():
    import torch
    from torch_fidelity import metric_fid as fid
    from torch_fidelity import metric_kid as kid

    a, b = features(0, 60, 16), features(1, 60, 16, shift=0.3)
    first, second = torch.from_numpy(a), torch.from_numpy(b)
    statistics = fid.fid_features_to_statistics(first), fid.fid_features_to_statistics(second)
    official = fid.fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(a, b) == pytest.approx(official, rel=1e-6)
    found = kid.kid_features_to_metric(first, second, kid_subsets=1, kid_subset_size=60, verbose=False)
    assert squared_mmd(a, b) == pytest.approx(found["kernel_inception_distance_mean"], rel=1e-9)


@pytest.mark.parametrize(
    "a, b, message",
    [
        (np.ones((3, 2)), np.ones((3, 4)), "of one model"),
        (np.ones(3), np.ones((3, 1)), "of one model"),
        (np.ones((1, 2)), np.ones((3, 2)), "sets of 1 and 3 images"),
        (np.full((2, 2), np.inf), np.ones((3, 2)), "not finite"),
    ],
)
def test_unusable_features(a, b, message):
    for distance in (frechet_distance, lambda a, b: kernel_distance(a, b, np.random.default_rng(0))):
        with pytest.raises(DataError, match=message):
            distance(a, b)
