"""How much of something a linear map reads out of embeddings.

Two measures, both by maps that see nothing but the embedding:

- R2 of ridge regression, in closed form: what share of a number's variance is found;
- F1 of multinomial logistic regression, in which every value of a number is a class of its own,
  as Anand et al. (2019, https://arxiv.org/abs/1906.08226) judge encoders.

Penalties are chosen on moments that are neither learned from nor judged (`Split.check`). Embeddings
are first turned into their principal axes on the moments learned from, which changes neither
measure; of embeddings with more than `WIDEST` numbers the leading axes are kept, and `Axes.kept`
says how much of their variance that is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

WIDEST = 1024
# A whole eigenvalue decomposition of this many axes takes seconds; of more, the leading ones do.
_EXACT = 2048
_COLUMNS = 2048  # Of an embedding, looked at together.
# Rows have a mean squared length of 1.
PENALTIES = 10.0 ** np.arange(-5, 3)
LOGISTIC_PENALTIES = (1e-3, 1e-4, 1e-5, 1e-6)
_ITERATIONS = 40  # Of LBFGS, at each penalty; the weaker ones begin where the stronger ended.

Rows = NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Split:
    """Moments, as places in an array: learned from, that choose a penalty, and judged."""

    fit: Rows
    check: Rows
    test: Rows

    @property
    def train(self) -> Rows:
        """All that is not judged."""
        return np.concatenate([self.fit, self.check])


@dataclasses.dataclass(frozen=True)
class Axes:
    """Embeddings along their principal axes.

    Attributes:
        rows: (n, K) float64, centred, of mean squared length 1 over the moments trained on.
        kept: Share of the variance there that these axes have.
    """

    rows: Tensor
    kept: float


def principal(embeddings: NDArray[Any], split: Split, widest: int | None = WIDEST) -> Axes:
    """Turn embeddings into their principal axes on `split.train`.

    Args:
        embeddings: (n, width).
        split: Which of them are trained on.
        widest: Axes that are kept at most; all if None.
    """
    train, (count, width) = split.train, embeddings.shape
    if width <= len(train):
        whole = torch.cat(list(_centred(embeddings, train, width)), dim=1).double()
        square = whole[train].T @ whole[train]
        values, vectors = _leading(square, widest)
        found = whole @ vectors
        total = square.trace()
    else:
        products = torch.zeros(count, len(train), dtype=torch.float64)
        for part in _centred(embeddings, train, _COLUMNS):
            products += part @ part[train].T
        values, vectors = _leading(products[train], widest)
        # Products are sums of single precision: what is smaller than their error is no axis.
        true = values > 1e-7 * values.max()
        values, vectors = values[true], vectors[:, true]
        found = products @ (vectors / values.sqrt())
        total = products[train].trace()
    scale = (total / len(train)).clamp_min(1e-30).sqrt()
    return Axes(found / scale, float(values.sum() / total.clamp_min(1e-30)))


def _centred(embeddings: NDArray[Any], train: Rows, columns: int) -> Iterator[Tensor]:
    """(n, at most `columns`) float32, some numbers after another, less their mean over `train`."""
    for at in range(0, embeddings.shape[1], columns):
        part = embeddings[:, at : at + columns].astype(np.float64)
        yield torch.from_numpy((part - part[train].mean(axis=0)).astype(np.float32))


def _leading(square: Tensor, most: int | None) -> tuple[Tensor, Tensor]:
    """Leading eigenvalues (K,) and eigenvectors (m, K) of a symmetric matrix (m, m)."""
    size = len(square)
    count = min(size, most or size)
    if size <= max(_EXACT, count):
        values, vectors = torch.linalg.eigh(square)
        return values[-count:].clamp_min(0), vectors[:, -count:]
    # Subspace iteration: the axes with the smallest share of those kept are approximate.
    half = square.float()
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(size, count, generator=generator))[0]
    for _ in range(4):
        basis = torch.linalg.qr(half @ basis)[0]
    values, inner = torch.linalg.eigh((basis.T @ (half @ basis)).double())
    return values.clamp_min(0), basis.double() @ inner


def ridge(axes: Axes, wanted: NDArray[Any], split: Split) -> NDArray[np.float64]:
    """What ridge regression finds of each variable, its penalty chosen by `split.check`.

    Args:
        axes: From `principal`.
        wanted: (n, V), the variables.

    Returns:
        (tests, V), the variables as found where they are judged.
    """
    truth = torch.from_numpy(wanted.astype(np.float64))
    checked = _regress(axes.rows, truth, split.fit, split.check)
    scores = np.stack([r2(wanted[split.check], found) for found in checked])
    chosen = np.nan_to_num(scores, nan=-np.inf).argmax(axis=0)
    found = np.stack(list(_regress(axes.rows, truth, split.train, split.test)))
    return found[chosen, :, np.arange(wanted.shape[1])].T


def _regress(
    rows: Tensor, wanted: Tensor, train: Rows, judged: Rows
) -> Iterator[NDArray[np.float64]]:
    """(judged, V) at each of `PENALTIES`."""
    own, mean = rows[train], wanted[train].mean(dim=0)
    square, product = own.T @ own, own.T @ (wanted[train] - mean)
    for penalty in PENALTIES:
        penalised = square + penalty * torch.eye(len(square), dtype=torch.float64)
        weights = torch.cholesky_solve(product, torch.linalg.cholesky(penalised))
        yield (rows[judged] @ weights + mean).numpy()


def r2(truth: NDArray[Any], found: NDArray[Any]) -> NDArray[np.float64]:
    """Coefficient of determination of each column; NaN where the truth does not vary."""
    spread = ((truth - truth.mean(axis=0)) ** 2).sum(axis=0)
    missed = ((truth - found) ** 2).sum(axis=0)
    varies = spread > 0
    return np.where(varies, 1 - missed / np.where(varies, spread, 1), np.nan)


def classify(axes: Axes, labels: NDArray[Any], split: Split) -> NDArray[Any]:
    """What multinomial logistic regression takes each judged moment for.

    It learns from `split.fit`, along a path of ever weaker penalties on the squares of its weights
    (LBFGS in single precision on axes scaled to be alike, which changes its way but not its goal),
    until F1 on `split.check` falls.

    Args:
        axes: From `principal`.
        labels: (n,), the class of each moment.

    Returns:
        (tests,), labels that were seen in training.
    """
    known, classes = np.unique(labels[split.fit], return_inverse=True)
    if len(known) == 1:
        return np.full(len(split.test), known[0])
    rows = axes.rows.float()
    own, target = rows[split.fit], torch.from_numpy(classes)
    variance = own.square().mean(dim=0)
    weights = torch.zeros(rows.shape[1], len(known))
    bias = torch.bincount(target).float().div(len(target)).log()
    best, answer = -1.0, np.full(len(split.test), known[0])
    for penalty in LOGISTIC_PENALTIES:
        scale = (variance + penalty).rsqrt()
        scaled = own * scale
        free = nn.Parameter(weights / scale[:, None])
        shift = nn.Parameter(bias)
        cost = 0.5 * penalty * scale.square()[:, None]
        descent = torch.optim.LBFGS(
            [free, shift], max_iter=_ITERATIONS, history_size=10, line_search_fn="strong_wolfe"
        )

        def loss(
            scaled: Tensor = scaled,
            free: Tensor = free,
            shift: Tensor = shift,
            cost: Tensor = cost,
            descent: torch.optim.Optimizer = descent,
        ) -> float:
            descent.zero_grad()
            logits = torch.addmm(shift, scaled, free)
            missed = nn.functional.cross_entropy(logits, target) + (cost * free.square()).sum()
            missed.backward()
            return float(missed.detach())

        descent.step(loss)
        weights, bias = (free * scale[:, None]).detach(), shift.detach()
        checked = known[(rows[split.check] @ weights + bias).argmax(dim=1).numpy()]
        score = f1(labels[split.check], checked)[0]
        if score < best:
            break
        best = score
        answer = known[(rows[split.test] @ weights + bias).argmax(dim=1).numpy()]
    return answer


def f1(truth: NDArray[Any], found: NDArray[Any]) -> tuple[float, float]:
    """F1 of each class of the truth: the mean by how often each occurs, and the plain mean."""
    classes, counts = np.unique(truth, return_counts=True)
    scores = np.empty(len(classes))
    for i, one in enumerate(classes):
        right = np.sum((truth == one) & (found == one))
        scores[i] = 2 * right / (counts[i] + np.sum(found == one))
    return float(scores @ counts / len(truth)), float(scores.mean())


def entropy(values: NDArray[Any]) -> float:
    """Entropy of a variable's values, in nats."""
    shares = np.unique(values, return_counts=True)[1] / len(values)
    return float(-(shares * np.log(shares)).sum())
