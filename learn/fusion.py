"""Weight Sharing Attention: several frozen models' embeddings become one state vector.

Piccoli et al., "Combining Pre-Trained Models for Enhanced Feature Representation in Reinforcement
Learning" (arXiv 2507.07197). For models i = 1..m with state embeddings u_i and a context u_0,

    E_i = ReLU(LN(W_i u_i + b_i))           adapters, one for each model
    c   = ReLU(LN(W_0 u_0 + b_0))           context, or the mean of the E_i
    s_i = f([c ; E_i])                      one MLP, shared by all models: the method's name
    w   = softmax(s)                        (m,), sums to 1
    R   = sum_i w_i E_i                     the state vector

The authors' code differs from their text and from itself; these defaults mend what was found wrong
there (docs/explain/wsa.md): scores have no ReLU, so a model can be turned off and no row is stuck at
uniform weights, and adapters are normalised, so none dies on embeddings of another scale. f has a
hidden layer, as their text says: in their code it is one linear map, and then c adds the same to
every score, which the softmax takes away again. The context would do nothing and learn nothing
(Brody et al., 2022, arXiv 2105.14491, for attention over graphs).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class WeightSharingAttention(nn.Module):
    """The fusion above.

    Args:
        widths: Numbers in each model's state embedding u_i.
        context: Index of the model whose embedding is the context, or None for the mean of the E_i.
        size: d, length of the state vector. The paper uses 256, 512 or 1024.
    """

    def __init__(self, widths: Sequence[int], context: int | None = None, size: int = 256) -> None:
        super().__init__()
        self.size = size
        self._context = context
        self.adapters = nn.ModuleList(_adapter(width, size) for width in widths)
        self.context = None if context is None else _adapter(widths[context], size)
        self.scorer = nn.Sequential(nn.Linear(2 * size, size), nn.ReLU(), nn.Linear(size, 1))

    def forward(self, embeddings: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Fuse.

        Args:
            embeddings: One (B, width) for each model.

        Returns:
            The state vector (B, d) and the weights (B, m).
        """
        adapted = torch.stack(
            [adapter(u) for adapter, u in zip(self.adapters, embeddings, strict=True)], dim=1
        )
        if self.context is None or self._context is None:
            context = adapted.mean(dim=1)
        else:
            context = self.context(embeddings[self._context])
        pairs = torch.cat([context.unsqueeze(1).expand_as(adapted), adapted], dim=2)
        weights = torch.softmax(self.scorer(pairs).squeeze(2), dim=1)
        return torch.einsum("bm,bmd->bd", weights, adapted), weights


def _adapter(width: int, size: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, size), nn.LayerNorm(size), nn.ReLU())
