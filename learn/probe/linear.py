"""Linear probes: how well a linear map reads a variable from embeddings.

There are two kinds, both fitted by scikit-learn on the embedding alone:

- ridge regression, for a numeric variable such as a position;
- multinomial logistic regression, with one class for every value of a variable, as Anand et al.
  (2019, https://arxiv.org/abs/1906.08226) judge encoders.

Penalties are chosen on steps that are used neither for fitting nor for testing (`Split.check`).
Embeddings are first projected onto their principal axes. Of embeddings wider than `MAX_AXES`, only
the leading axes are kept, and `Axes.kept` is their share of the variance. The axes are fitted on
all steps, including those tested: they depend on frames, not on labels.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsa.learn.probe.splits import Split

MAX_AXES = 1024
# Number of steps on which the axes of wider embeddings are fitted: the time grows with its cube.
AXES_SAMPLE = 2048
_COLUMNS = 2048  # Columns of an embedding that are processed together.
# For rows with a mean squared length of 1.
PENALTIES = 10.0 ** np.arange(-5, 3)
# For logistic regression, rows are rescaled so that each axis has a mean square near 1;
# those with a share of the variance below FAINT stay small.
FAINT = 1e-4
LOGISTIC_PENALTIES = (1e-2, 1e-3, 1e-4)


@dataclasses.dataclass(frozen=True)
class Axes:
    """Embeddings along their principal axes.

    Attributes:
        rows: Shape (n, K), centered, with mean squared length 1, the leading axis first.
        kept: Share of the embeddings' variance along these axes.
    """

    rows: NDArray[np.float64]
    kept: float

    def leading(self, count: int) -> Axes:
        """Keep the first axes, at most `count`, rescaled to a mean squared length of 1."""
        rows = self.rows[:, :count]
        share = float((rows**2).sum() / max((self.rows**2).sum(), 1e-30))
        return Axes(rows / max(share, 1e-30) ** 0.5, self.kept * share)


def principal(embeddings: NDArray[Any], max_axes: int = MAX_AXES) -> Axes:
    """Project embeddings onto their principal axes.

    Args:
        embeddings: Shape (n, width).
        max_axes: Maximum number of axes to keep.
    """
    from sklearn.decomposition import PCA, KernelPCA

    count, width = embeddings.shape
    if width <= min(count, AXES_SAMPLE):
        rows = embeddings.astype(np.float64)
        total = rows.var(axis=0).sum() * count
        with np.errstate(invalid="ignore"):  # For constant embeddings, shares are 0 / 0.
            pca = PCA(min(width, max_axes), svd_solver="covariance_eigh").fit(rows)
        projected, values = pca.transform(rows), pca.explained_variance_ * (count - 1)
        share = values.sum() / max(total, 1e-30)
    else:
        # The Gram matrix of steps gives the same axes, and is smaller than the covariance matrix.
        sample = np.linspace(0, count - 1, min(count, AXES_SAMPLE)).astype(np.int64)
        products = np.zeros((count, len(sample)))
        for part in _centered(embeddings, sample):
            products += part @ part[sample].T
        kernel = KernelPCA(
            min(len(sample), max_axes), kernel="precomputed", eigen_solver="dense", copy_X=False
        ).fit(products[sample])
        # Products are single-precision sums: an eigenvalue below their error is not an axis.
        significant = kernel.eigenvalues_ >= 1e-7 * kernel.eigenvalues_.max()
        projected = kernel.transform(products)[:, significant]
        share = kernel.eigenvalues_[significant].sum() / max(products[sample].trace(), 1e-30)
    scale = max((projected**2).sum() / count, 1e-30) ** 0.5
    return Axes(projected / scale, float(share))


def memory_bytes(count: int, width: int, held: int = 1) -> int:
    """Estimate the memory needed to probe an embedding, in bytes.

    Args:
        count: Number of steps.
        width: Length of the embedding.
        held: Number of embeddings of that width in memory at once.
    """
    axes = min(width, MAX_AXES, count)
    stored = 8 * count * width * held  # Single precision, in parts and joined.
    if width <= min(count, AXES_SAMPLE):
        projection = 8 * count * (width + 2 * axes)  # Double precision, and projected.
    else:
        sample = min(count, AXES_SAMPLE)
        # The Gram matrix, two parts of the embedding, and the axes.
        projection = (
            8 * count * (sample + axes) + 16 * count * min(width, _COLUMNS) + 24 * sample**2
        )
    return stored + projection + 24 * count * axes  # Copies of axes while probes are fitted.


def _centered(embeddings: NDArray[Any], sample: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
    """Yield blocks of at most `_COLUMNS` columns, minus their mean over the steps `sample`."""
    for start in range(0, embeddings.shape[1], _COLUMNS):
        part = embeddings[:, start : start + _COLUMNS].astype(np.float64)
        yield (part - part[sample].mean(axis=0)).astype(np.float32)


def ridge(axes: Axes, targets: NDArray[Any], split: Split) -> NDArray[np.float64]:
    """Predict each variable by ridge regression, with the penalty chosen on `split.check`.

    Args:
        axes: From `principal`.
        targets: Variables, shape (n, V).
        split: Split of the steps; no part is empty.

    Returns:
        Predictions for the tested steps, shape (tests, V).
    """
    from sklearn.linear_model import Ridge

    rows, count = axes.rows, targets.shape[1]
    # Repeat the variables for each penalty: scikit-learn then builds the normal equations once.
    repeated = np.tile(targets, len(PENALTIES))
    penalties: Any = np.repeat(PENALTIES, count)
    model = Ridge(penalties, solver="cholesky").fit(rows[split.fit], repeated[split.fit])
    errors = (
        model.predict(rows[split.check]).reshape(-1, repeated.shape[1]) - repeated[split.check]
    ) ** 2
    chosen: Any = PENALTIES[errors.mean(axis=0).reshape(len(PENALTIES), count).argmin(axis=0)]
    model = Ridge(chosen, solver="cholesky").fit(rows[split.train], targets[split.train])
    predicted: NDArray[np.float64] = model.predict(rows[split.test])
    return predicted.reshape(-1, count)  # For a single variable, scikit-learn returns (tests,).


@contextlib.contextmanager
def _many_classes() -> Iterator[None]:
    """Silence scikit-learn's warning that many unique values may not be classes: here they are."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The number of unique classes is greater", UserWarning)
        yield


@_many_classes()
def classify(axes: Axes, labels: NDArray[Any], split: Split) -> NDArray[Any]:
    """Predict the label of each tested step by multinomial logistic regression.

    It is fitted on `split.fit`, on rescaled axes, with ever weaker penalties until F1 on
    `split.check` falls.

    Args:
        axes: From `principal`.
        labels: Class of each step, shape (n,).

    Returns:
        Labels, shape (tests,), among those seen in training.
    """
    from sklearn.linear_model import LogisticRegression

    fit_labels = labels[split.fit]
    predicted = np.full(len(split.test), fit_labels[0])
    if (fit_labels == fit_labels[0]).all():
        return predicted
    rows = axes.rows / np.sqrt((axes.rows[split.fit] ** 2).mean(axis=0) + FAINT)
    model: Any = LogisticRegression(max_iter=1000, warm_start=True)
    best = -1.0
    for penalty in LOGISTIC_PENALTIES:
        # scikit-learn sums the losses of steps; the penalty here is relative to their mean.
        model.set_params(C=1 / (penalty * len(fit_labels))).fit(rows[split.fit], fit_labels)
        score = f1(labels[split.check], model.predict(rows[split.check]))[0]
        if score < best:
            break
        best, predicted = score, model.predict(rows[split.test])
    return predicted


@_many_classes()
def f1(truth: NDArray[Any], predicted: NDArray[Any]) -> tuple[float, float]:
    """F1 over the classes of the truth: the mean weighted by frequency, and the plain mean.

    Args:
        truth: True labels, shape (n,), with n at least 1.
        predicted: Predicted labels, shape (n,).
    """
    from sklearn.metrics import f1_score

    classes = np.unique(truth)
    weighted = f1_score(truth, predicted, labels=classes, average="weighted")
    return float(weighted), float(f1_score(truth, predicted, labels=classes, average="macro"))


def entropy(values: NDArray[Any]) -> float:
    """Entropy of a variable's values, in nats."""
    shares = np.unique(values, return_counts=True)[1] / len(values)
    return float(np.abs((shares * np.log(shares)).sum()))
