"""What a frozen model is, said completely: the spec that is stored, and the key cut from it.

Whatever changes the numbers a model returns is part of its identity: architecture, weights,
preprocessing, output, basis, window, precision. Library versions are not: an upgrade must not throw
a lab's embeddings away. The probe (`wsa.encode.probe`) catches the upgrade that changes numbers.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from wsa.store import keys, names
from wsa.store.errors import UsageError

Precision = Literal["fp32", "tf32", "fp16", "bf16"]
DEFAULT_OUTPUT = "grid:7+pca:512"

_OUTPUT = re.compile(r"(pooled|grid:([1-9][0-9]?))(\+pca:([1-9][0-9]{0,4}))?", re.ASCII)


class Output(msgspec.Struct, frozen=True):
    """What is kept of a model's last feature map.

    Attributes:
        grid: Side of the grid that the map is averaged to; 0 for the model's own pooling.
        pca: Numbers kept by a frozen principal component projection; 0 for all.
    """

    grid: int
    pca: int


def parse_output(text: str) -> Output:
    """Read `pooled`, `grid:N`, and either with `+pca:K`.

    Raises:
        UsageError: It is none of these.
    """
    match = _OUTPUT.fullmatch(text)
    if match is None:
        raise UsageError(
            "bad-option",
            f"--output {text!r} is not an output; write pooled, grid:7, or grid:7+pca:512.",
        )
    return Output(int(match[2] or 0), int(match[4] or 0))


class Preprocessing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From a screen to a model's input.

    Attributes:
        geometry: `squash`: the whole screen, both sides stretched to the model's input.
        height, width: The model's input in pixels.
        interpolation: `bicubic` or `bilinear`, with antialiasing, on uint8.
        mean, std: Per channel, of pixels divided by 255.
    """

    geometry: Literal["squash"]
    height: int
    width: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Identity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that determines a model's embeddings; the model key is cut from its hash.

    Attributes:
        architecture: timm architecture, without a weights tag.
        weights: Hex blake3-256 of the tensors.
        random: Whether the weights are random rather than trained.
        preprocessing: From a screen to the input.
        output: As `parse_output` reads it.
        basis: `wsa.encode.basis.recipe` of the output's basis, or empty.
        window: Consecutive frames the model looks at.
        precision: Arithmetic of the forward pass.
    """

    architecture: str
    weights: str
    random: bool
    preprocessing: Preprocessing
    output: str
    basis: str
    window: int
    precision: Precision


class ModelSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model as it is stored: `models/<key>/spec.json`.

    Attributes:
        alias: What users call it.
        timm_name: timm architecture with its weights tag.
        identity: What determines its embeddings.
        shape: Shape of one embedding.
        source: Where the weights came from, as `wsa.encode.models.Request.source`.
        licence: Licence of the weights, as their publisher states it.
        step_error: Step-relative error of this precision against fp32 on the probe strip.
        libraries: Versions that made the probe vectors.
    """

    alias: str
    timm_name: str
    identity: Identity
    shape: tuple[int, ...]
    source: str
    licence: str
    step_error: float
    libraries: dict[str, str]

    @property
    def key(self) -> str:
        """The model key, `<alias>-<12 hex>`."""
        return model_key(self.alias, self.identity)

    @property
    def title(self) -> str:
        """Alias, marked where the weights are random."""
        return f"{self.alias} (random weights)" if self.identity.random else self.alias


def model_key(alias: str, identity: Identity) -> str:
    """The key of a model that users call `alias`."""
    return names.make_model_key(alias, keys.identity(identity))
