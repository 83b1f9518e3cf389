"""How much of something a linear map reads out of embeddings.

Two maps that see nothing but the embedding, both fitted by scikit-learn:

- ridge regression, for a number such as a place;
- multinomial logistic regression, in which every value of a number is a class of its own, as Anand
  et al. (2019, https://arxiv.org/abs/1906.08226) judge encoders.

Penalties are chosen on moments that are neither learned from nor judged (`Split.check`). Embeddings
are first turned into their principal axes: of those with more than `WIDEST` numbers the leading axes
are kept, and `Axes.kept` says how much of their variance that is. Axes are found on all moments, also
those that are judged: they know frames, and no answers.
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

WIDEST = 1024
# The axes of wider embeddings are found on so many moments: the time grows with the cube of these.
AXES_FROM = 2048
_COLUMNS = 2048  # Of an embedding, looked at together.
# Rows have a mean squared length of 1.
PENALTIES = 10.0 ** np.arange(-5, 3)
# For logistic regression rows are scaled once more, so that each axis has a mean square near 1;
# those with a share of the variance below FAINT stay small.
FAINT = 1e-4
LOGISTIC_PENALTIES = (1e-2, 1e-3, 1e-4)


@dataclasses.dataclass(frozen=True)
class Axes:
    """Embeddings along their principal axes.

    Attributes:
        rows: (n, K), centred, of mean squared length 1, the leading axis first.
        kept: Share of the variance that these axes have.
    """

    rows: NDArray[np.float64]
    kept: float

    def leading(self, count: int) -> Axes:
        """The first axes, at most `count`, scaled to a mean squared length of 1 again."""
        rows = self.rows[:, :count]
        share = float((rows**2).sum() / max((self.rows**2).sum(), 1e-30))
        return Axes(rows / max(share, 1e-30) ** 0.5, self.kept * share)


def principal(embeddings: NDArray[Any], widest: int = WIDEST) -> Axes:
    """Turn embeddings into their principal axes.

    Args:
        embeddings: (n, width).
        widest: Axes that are kept at most.
    """
    from sklearn.decomposition import PCA, KernelPCA

    count, width = embeddings.shape
    if width <= min(count, AXES_FROM):
        rows = embeddings.astype(np.float64)
        total = rows.var(axis=0).sum() * count
        with np.errstate(invalid="ignore"):  # Of embeddings that never change, shares are 0 / 0.
            pca = PCA(min(width, widest), svd_solver="covariance_eigh").fit(rows)
        found, values = pca.transform(rows), pca.explained_variance_ * (count - 1)
        share = values.sum() / max(total, 1e-30)
    else:
        # Products of moments tell the same axes, and are fewer than the embeddings' numbers.
        some = np.linspace(0, count - 1, min(count, AXES_FROM)).astype(np.int64)
        products = np.zeros((count, len(some)))
        for part in _centred(embeddings, some):
            products += part @ part[some].T
        kernel = KernelPCA(
            min(len(some), widest), kernel="precomputed", eigen_solver="dense", copy_X=False
        ).fit(products[some])
        # Products are sums of single precision: what is smaller than their error is no axis.
        true = kernel.eigenvalues_ >= 1e-7 * kernel.eigenvalues_.max()
        found = kernel.transform(products)[:, true]
        share = kernel.eigenvalues_[true].sum() / max(products[some].trace(), 1e-30)
    scale = max((found**2).sum() / count, 1e-30) ** 0.5
    return Axes(found / scale, float(share))


def memory_bytes(count: int, width: int, held: int = 1) -> int:
    """About what it takes to read out an embedding, in bytes.

    Args:
        count: Moments.
        width: Numbers in the embedding.
        held: Embeddings of that width that are held at once.
    """
    kept = min(width, WIDEST, count)
    stored = 8 * count * width * held  # In single precision, in parts and joined.
    if width <= min(count, AXES_FROM):
        turning = 8 * count * (width + 2 * kept)  # In double precision, and along the axes.
    else:
        some = min(count, AXES_FROM)
        # Products of pairs, two parts of the embedding, and the axes.
        turning = 8 * count * (some + kept) + 16 * count * min(width, _COLUMNS) + 24 * some**2
    return stored + turning + 24 * count * kept  # Copies of axes while probes are fitted.


def _centred(embeddings: NDArray[Any], some: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
    """(n, at most `_COLUMNS`), some numbers after another, less their mean over the moments `some`."""
    for at in range(0, embeddings.shape[1], _COLUMNS):
        part = embeddings[:, at : at + _COLUMNS].astype(np.float64)
        yield (part - part[some].mean(axis=0)).astype(np.float32)


def ridge(axes: Axes, wanted: NDArray[Any], split: Split) -> NDArray[np.float64]:
    """What ridge regression finds of each variable, its penalty chosen by `split.check`.

    Args:
        axes: From `principal`.
        wanted: (n, V), the variables.
        split: No part of it is empty.

    Returns:
        (tests, V), the variables as found where they are judged.
    """
    from sklearn.linear_model import Ridge

    rows, count = axes.rows, wanted.shape[1]
    # Each variable once for each penalty: scikit-learn then makes the normal equations once.
    many = np.tile(wanted, len(PENALTIES))
    each: Any = np.repeat(PENALTIES, count)
    model = Ridge(each, solver="cholesky").fit(rows[split.fit], many[split.fit])
    errors = (model.predict(rows[split.check]).reshape(-1, many.shape[1]) - many[split.check]) ** 2
    chosen: Any = PENALTIES[errors.mean(axis=0).reshape(len(PENALTIES), count).argmin(axis=0)]
    model = Ridge(chosen, solver="cholesky").fit(rows[split.train], wanted[split.train])
    found: NDArray[np.float64] = model.predict(rows[split.test])
    return found.reshape(-1, count)  # Of one variable, scikit-learn gives (tests,).


@contextlib.contextmanager
def _many_classes() -> Iterator[None]:
    """Silence scikit-learn's doubt that numbers of so many values are classes: here they are."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The number of unique classes is greater", UserWarning)
        yield


@_many_classes()
def classify(axes: Axes, labels: NDArray[Any], split: Split) -> NDArray[Any]:
    """Predict the label of each judged moment by multinomial logistic regression.

    It learns from `split.fit`, on axes scaled to be alike, with ever weaker penalties until F1 on
    `split.check` falls.

    Args:
        axes: From `principal`.
        labels: (n,), the class of each moment.

    Returns:
        (tests,), labels that were seen in training.
    """
    from sklearn.linear_model import LogisticRegression

    own = labels[split.fit]
    answer = np.full(len(split.test), own[0])
    if (own == own[0]).all():
        return answer
    rows = axes.rows / np.sqrt((axes.rows[split.fit] ** 2).mean(axis=0) + FAINT)
    model: Any = LogisticRegression(max_iter=1000, warm_start=True)
    best = -1.0
    for penalty in LOGISTIC_PENALTIES:
        # scikit-learn adds up the moments' losses; the penalty is that of their mean.
        model.set_params(C=1 / (penalty * len(own))).fit(rows[split.fit], own)
        score = f1(labels[split.check], model.predict(rows[split.check]))[0]
        if score < best:
            break
        best, answer = score, model.predict(rows[split.test])
    return answer


@_many_classes()
def f1(truth: NDArray[Any], found: NDArray[Any]) -> tuple[float, float]:
    """F1 of each class of the truth: the mean by how often each occurs, and the plain mean.

    Args:
        truth: (n,), with n at least 1.
        found: (n,).
    """
    from sklearn.metrics import f1_score

    classes = np.unique(truth)
    weighted = f1_score(truth, found, labels=classes, average="weighted")
    return float(weighted), float(f1_score(truth, found, labels=classes, average="macro"))


def entropy(values: NDArray[Any]) -> float:
    """Entropy of a variable's values, in nats."""
    shares = np.unique(values, return_counts=True)[1] / len(values)
    return float(np.abs((shares * np.log(shares)).sum()))
