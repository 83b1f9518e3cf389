"""Names, outputs and licenses of the paper's own encoders, readable without importing torch."""

from __future__ import annotations

PREFIX = "wsa:"
LICENSE = "Apache-2.0, trained by wsa"
CONTEXT = "ae"  # Gives the context of the paper's fusion and is not itself fused.

# Module and class of each network, and its default output.
NETWORKS = {
    "ae": ("context:ContextEncoder", "map"),
    "sr": ("marginals:MarginalEncoder", "pooled"),
    "oke": ("keypoints:FeatureEncoder", "map"),
    "okk": ("keypoints:KeypointEncoder", "map"),
    "vos": ("masks:ObjectMasks", "pooled"),
}

# Other networks under an alias, from earlier versions or for training. A file's tensors decide
# which network is built.
OTHER_NETWORKS = {"sr": ("state:StateEncoder",)}


def is_paper_model(timm_name: str) -> bool:
    """Return whether the architecture of a request or spec is one of the paper's encoders."""
    return timm_name.startswith(PREFIX)


def license(source: str) -> str:
    """Return the license of the weights of one of the paper's encoders."""
    stated = {"random": "none: random weights", "package": LICENSE}
    return stated.get(source, "as stated by its trainer")
