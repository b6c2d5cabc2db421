"""A linear probe in scikit-learn's terms: frozen features of photos, and logistic regression on them.

    probe = make_pipeline(ImageFeatures("tiny"), LinearProbe())
    probe.fit(train_photos, train_labels).score(test_photos, test_labels)

`ImageFeatures` goes in front of any other estimator as well, and `LinearProbe` takes features of any origin. The
protocol is that of CLIP (Radford et al., 2021, appendix A.3): L-BFGS with at most 1,000 steps, features as they are,
and the strength of the L2 penalty from a sweep on photos kept aside, after which the probe is fitted to all of them.
"""

import warnings
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.utils.validation import check_is_fitted, check_X_y

from eval import models
from vlm.data.stream import ordered_map
from vlm.errors import ArgumentError, DataError
from vlm.image import ImageSource

PER_DECADE = 8  # strengths tried between two powers of ten
DECADES = 6  # on either side of C = 1
VALIDATION = 0.2  # of the photos of each class, kept aside for the sweep


class ImageFeatures(TransformerMixin, BaseEstimator):
    """Photos to features, by any model of the harness that has some.

    Args:
        model: a name that `eval.models.load` takes, or a model with `prepare` and `features` or `encode_image`.
        batch_size: photos that go through the model together; it does not change the features.
        device: where a model that is given by name runs.
    """

    def __init__(self, model: Any = "tiny", batch_size: int = 32, device: str = "cpu"):
        self.model = model
        self.batch_size = batch_size
        self.device = device

    def fit(self, X: Sequence[ImageSource], y: Any = None) -> "ImageFeatures":
        """Load the model; nothing is learnt.

        Raises:
            ArgumentError: the model has no features of photos, or the batch size is below 1.
            ModelError: there is no such model.
        """
        if self.batch_size < 1:
            raise ArgumentError(f"batch_size={self.batch_size} is below 1; give 1 or more")
        task = "featurize"
        self.model_ = models.load(self.model, task, self.device) if isinstance(self.model, str) else self.model
        models.check(self.model_, task)
        return self

    def transform(self, X: Sequence[ImageSource]) -> np.ndarray:
        """Photos (paths, bytes, PIL images, arrays) to `float32[photos, dim]`.

        Raises:
            ImageError: a photo cannot be used.
            DataError: there is none.
        """
        check_is_fitted(self)
        stream, rows = ordered_map(self.model_.prepare, X, ahead=2 * self.batch_size), []
        while part := list(islice(stream, self.batch_size)):
            rows.append(models.image_features(self.model_, part))
        if not rows:
            raise DataError("no photos to take features of; give at least one")
        return np.concatenate(rows)


class LinearProbe(ClassifierMixin, BaseEstimator):
    """Multinomial logistic regression whose regularisation is chosen on a part of the training data.

    `C`, the inverse strength of the penalty, is one of 97 values from 1e-6 to 1e6, eight a decade. As in CLIP, not all
    are tried: every second decade first, then half as far on either side of the best one, down to neighbours. Of
    equally good values the smallest is taken, which is the strongest penalty.

    Args:
        validation: share of each class kept aside for the sweep; a class of one sample is only learnt from.
        max_iter: steps of L-BFGS for each fit.
        seed: which samples are kept aside.

    Attributes:
        classes_: the labels.
        C_: the value chosen.
        validation_accuracy_: by value tried, the share of right classes on the part kept aside.
        regression_: scikit-learn's `LogisticRegression`, fitted to all samples.
    """

    def __init__(self, validation: float = VALIDATION, max_iter: int = 1000, seed: int = 0):
        self.validation = validation
        self.max_iter = max_iter
        self.seed = seed

    def fit(self, X: Any, y: Any) -> "LinearProbe":
        """Learn from features, `float[samples, dim]`, and their labels, `[samples]`.

        Raises:
            DataError: fewer than two classes, or no class with two samples.
            ArgumentError: `validation` is not a share.
        """
        X, y = check_X_y(X, y, dtype=(np.float64, np.float32))  # pyright: ignore[reportArgumentType]
        if not 0 < self.validation < 1:
            raise ArgumentError(f"validation={self.validation} is not a share of the samples; give one between 0 and 1")
        self.classes_ = np.unique(y)
        if len(self.classes_) < 2:
            raise DataError(
                f"all {len(y)} samples are of the class {self.classes_.tolist()[0]!r}; a probe tells two or more apart"
            )
        aside = self._kept_aside(y)
        if not aside.any():
            raise DataError("every class has a single sample, so that none can be kept aside; give two or more of one")
        self.validation_accuracy_: dict[float, float] = {}
        with warnings.catch_warnings():
            # weak penalties are seldom at rest after 1,000 steps, in CLIP's protocol as well
            warnings.simplefilter("ignore", ConvergenceWarning)
            self.C_ = self._sweep(X[~aside], y[~aside], X[aside], y[aside])
            self.regression_ = self._regression(self.C_).fit(X, y)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The label of each sample, `[samples]`."""
        check_is_fitted(self)
        return self.regression_.predict(X)

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probability of each class, `float[samples, classes]`."""
        check_is_fitted(self)
        return self.regression_.predict_proba(X)

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores as of scikit-learn's `LogisticRegression`."""
        check_is_fitted(self)
        return self.regression_.decision_function(X)

    def _regression(self, strength: float) -> LogisticRegression:
        return LogisticRegression(C=strength, max_iter=self.max_iter)

    def _kept_aside(self, y: np.ndarray) -> np.ndarray:
        """`bool[samples]`: the share of each class, at least one and never all of its samples."""
        rng, aside = np.random.default_rng(self.seed), np.zeros(len(y), bool)
        for label in self.classes_:
            own = rng.permutation(np.flatnonzero(y == label))
            aside[own[: min(len(own) - 1, max(1, round(self.validation * len(own))))]] = True
        return aside

    def _sweep(self, X: np.ndarray, y: np.ndarray, X_aside: np.ndarray, y_aside: np.ndarray) -> float:
        """The value of `C` that is best on the part kept aside."""
        last = DECADES * PER_DECADE  # values are 10 ** (place / PER_DECADE), places from -last to last
        accuracy: dict[int, float] = {}

        def try_places(places: Sequence[int]) -> int:
            for place in places:
                if abs(place) <= last and place not in accuracy:
                    fitted = self._regression(10 ** (place / PER_DECADE)).fit(X, y)
                    accuracy[place] = float(fitted.score(X_aside, y_aside))
            return min(accuracy, key=lambda place: (-accuracy[place], place))

        step = 2 * PER_DECADE
        best = try_places(range(-last, last + 1, step))
        while step > 1:
            step //= 2
            best = try_places([best - step, best + step])
        self.validation_accuracy_ = {10 ** (place / PER_DECADE): accuracy[place] for place in sorted(accuracy)}
        return 10 ** (best / PER_DECADE)
