"""Find the decoder of a model's stored codes, by the digest of the model's weights.

Of wsa's own encoders, `vos` stores a code of 512 numbers, from which its masks can be decoded. The
decoder is part of the model's weights, so the digest in the model's identity determines it.
"""

from __future__ import annotations

import functools

import torch
from torch import nn

from wsa.encode.models.paper import catalog, load
from wsa.encode.models.paper.masks import CODE, MASKS
from wsa.encode.registration.identity import weights_digest
from wsa.store.common.errors import ConflictError, UsageError
from wsa.store.objects.model_spec import ModelSpec

ALIAS = "vos"
SHAPE = MASKS
_SOURCES = ("package", "random")  # Weights that every installation of wsa has.


def require_code(spec: ModelSpec) -> None:
    """Refuse a model whose embeddings cannot be decoded.

    Raises:
        UsageError: If it has no decoder, or stores something other than its code.
        ConflictError: If its weights are not wsa's own.
    """
    if spec.timm_name != catalog.PREFIX + ALIAS:
        raise UsageError(
            f"--decode: {spec.key} has no decoder; only {ALIAS} has one. Leave it out."
        )
    if spec.shape != (CODE,) or spec.identity.output != catalog.NETWORKS[ALIAS][1]:
        raise UsageError(
            f"--decode: the store has {spec.key} with --output {spec.identity.output}, and only "
            f"its code (--output {catalog.NETWORKS[ALIAS][1]}, the default) can be decoded. Leave it "
            "out, or encode the code."
        )
    find_decoder(spec.identity.weights)


@functools.cache
def find_decoder(weights: str) -> nn.Module:
    """Return the frozen decoder from codes (B, 512) to masks (B, 20, 84, 84), on the CPU.

    The module is shared: copy it before changing it.

    Args:
        weights: Hex blake3-256 of the model's tensors, `Identity.weights`.

    Raises:
        ConflictError: If they are neither the weights that come with wsa nor its untrained ones.
    """
    with torch.device("cpu"):  # The caller may be building a network on the meta device.
        for source in _SOURCES:
            built = load.build(catalog.PREFIX + ALIAS, source)
            if weights_digest(built) == weights:
                decoder: nn.Module = built.get_submodule("module.decoder")
                return decoder
    raise ConflictError(
        "other-weights",
        f"--decode: no decoder belongs to the weights of {ALIAS} with digest {weights[:12]}. wsa "
        "has decoders of the weights that come with this version, trained and untrained. Encode "
        f"with those, or store the masks: wsa encode --models {ALIAS} --output map.",
    )
