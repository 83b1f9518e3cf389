"""The stored spec of a frozen model, and its key, which is derived from the spec.

Everything that changes a model's embeddings is part of its identity: architecture, weights,
preprocessing, output, basis, window, precision. Library versions are not, because an upgrade must
not discard a lab's embeddings. The probe (`wsa.store.objects.probe`) catches an upgrade that changes
the embeddings.
"""

from __future__ import annotations

import re
from typing import Any, Final, Literal

import msgspec

from wsa.store.common import hashing, names
from wsa.store.common.errors import DamagedError, MissingError, UsageError
from wsa.store.format import records
from wsa.store.objects.snapshot import Snapshot

Precision = Literal["fp32", "tf32", "fp16", "bf16"]
Geometry = Literal["squash", "crop", "pad"]
DEFAULT_OUTPUT = "grid:7+pca:512"
GRAY: Final = "grey"  # `channels` of stored models, so part of their keys.

_OUTPUT = re.compile(
    r"(?:(pooled|cls|map)|grid:([1-9][0-9]?))"
    r"(?:\+(pca|rp|palette|objects):([1-9][0-9]{0,4})(?:@([A-Za-z0-9]+))?)?",
    re.ASCII,
)


class Output(msgspec.Struct, frozen=True):
    """How a model's last features become its embedding.

    Attributes:
        kind: `pooled`, the model's own pooling; `cls`, its class token; `grid`, its feature map
            averaged to a grid; `map`, its feature map.
        side: Side of the grid; 0 if `kind` is not `grid`.
        reduction: A frozen dimensionality reduction: `pca`, principal components; `rp`, a random
            projection; `palette` and `objects`, which read gray screens; empty for none.
        numbers: Output size of the reduction: values of `pca` and `rp`, gray levels of `palette`,
            classes of `objects`; 0 without a reduction.
        game: Game whose frames the reduction is fitted on; empty for the probe frames.
    """

    kind: Literal["pooled", "cls", "grid", "map"]
    side: int = 0
    reduction: Literal["", "pca", "rp", "palette", "objects"] = ""
    numbers: int = 0
    game: str = ""

    @property
    def of_one_game(self) -> bool:
        """Whether the output needs frames of one game, and embeds only that game."""
        return self.reduction in ("palette", "objects")

    @property
    def only_game(self) -> str:
        """The only game that a model with this output embeds; empty if it embeds any."""
        return self.game if self.of_one_game else ""

    def __str__(self) -> str:
        """The text that `parse_output` parses."""
        kept = f"grid:{self.side}" if self.kind == "grid" else self.kind
        at = f"@{self.game}" if self.game else ""
        return f"{kept}+{self.reduction}:{self.numbers}{at}" if self.reduction else kept


def parse_output(text: str) -> Output:
    """Parse `pooled`, `cls`, `grid:N` or `map`, optionally with `+pca:K`, `+pca:K@Game` or `+rp:K`.

    The outputs `palette` and `objects` are `map+palette:K` and `map+objects:K`, stored with `@Game`.

    Raises:
        UsageError: If the text is none of these.
    """
    match = _OUTPUT.fullmatch(text)
    if match is None or (match[5] and match[3] == "rp"):
        raise UsageError(
            f"--output {text!r} is not an output; write pooled, cls, grid:7, or map. To reduce "
            "it, append +pca:512, +pca:512@Pong, or +rp:512, with at most 99999 numbers."
        )
    game = names.game(match[5]) if match[5] else ""
    kind: Any = match[1] or "grid"
    reduction: Any = match[3] or ""
    return Output(kind, int(match[2] or 0), reduction, int(match[4] or 0), game)


class Preprocessing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Preprocessing from a screen to a model's input.

    Attributes:
        geometry: `squash`: stretch the whole screen to the input. `crop`: as timm evaluates, resize
            the shorter side and keep the center. `pad`: keep the whole screen and its aspect ratio,
            with black bars.
        height, width: Size of the model's input in pixels.
        interpolation: `bicubic` or `bilinear`, with antialiasing, on uint8; or `area`, the mean of
            the pixels that an output pixel covers.
        mean, std: Mean and standard deviation per channel, for pixels divided by 255.
        crop: Fraction of the resized screen's shorter side that `crop` keeps; 1 otherwise.
        channels: `rgb`, or `GRAY` for one channel of luma.
    """

    geometry: Geometry
    height: int
    width: int
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float = 1.0
    channels: Literal["rgb", "grey"] = "rgb"

    @property
    def gray(self) -> bool:
        """Whether the input is one channel of luma."""
        return self.channels == GRAY

    @property
    def alike(self) -> Preprocessing:
        """The same without `mean` and `std`: models may share all earlier steps."""
        return msgspec.structs.replace(self, mean=(), std=())


class Identity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that determines a model's embeddings; its hash gives the model key.

    Attributes:
        architecture: timm architecture without a weights tag, or a user's own `module:callable`.
        weights: Hex blake3-256 of the tensors.
        random: Whether the weights are random rather than trained.
        preprocessing: Preprocessing from a screen to the input.
        output: Output, as text for `parse_output`.
        basis: Identity of the output's basis, from `wsa.encode.inference.reduction`; empty for none.
        window: Number of consecutive frames that the model sees.
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
        alias: Users' name for the model.
        timm_name: timm architecture with its weights tag, or a user's own `module:callable`, which
            is displayed but never imported (`wsa.encode.models.custom`).
        identity: Everything that determines the embeddings.
        shape: Shape of one embedding.
        source: Origin of the weights, from `wsa.encode.models.registry.Request.recorded`.
        license: License of the weights, as their publisher states it.
        step_error: Step-relative error of this precision against fp32 on the probe frames.
        libraries: Versions of the libraries that computed the probe vectors.
    """

    alias: str
    timm_name: str
    identity: Identity
    shape: tuple[int, ...]
    source: str
    license: str = msgspec.field(name="licence")  # The name in the format.
    step_error: float
    libraries: dict[str, str]

    @property
    def key(self) -> str:
        """The model key, `<alias>-<12 hex>`."""
        return model_key(self.alias, self.identity)

    @property
    def json(self) -> bytes:
        """Content of `spec.json`."""
        return hashing.canonical(
            {**msgspec.to_builtins(self), "identity": _identity_values(self.identity)}
        )

    @property
    def game(self) -> str:
        """The only game that the model embeds; empty if it embeds any."""
        return parse_output(self.identity.output).only_game

    @property
    def title(self) -> str:
        """The alias, marked if the weights are random."""
        return f"{self.alias} (random weights)" if self.identity.random else self.alias


def model_key(alias: str, identity: Identity) -> str:
    """Return the key of the model with this alias and identity."""
    return names.make_model_key(alias, hashing.identity(_identity_values(identity)))


def _identity_values(identity: Identity) -> dict[str, Any]:
    """Convert an identity to JSON values.

    Later fields of `Preprocessing` are left out if they have their default, so that the keys of
    older models stay the same. msgspec's `omit_defaults` does not work here: it compares objects by
    identity, which a number loses on its way to a worker.
    """
    values: dict[str, Any] = msgspec.to_builtins(identity)
    for field in msgspec.structs.fields(Preprocessing):
        if values["preprocessing"][field.name] == field.default:
            del values["preprocessing"][field.name]
    return values


def read_spec(snapshot: Snapshot, key: str) -> ModelSpec:
    """Read the spec of a registered model.

    Raises:
        MissingError: If there is no such model.
        DamagedError: If the spec cannot be read.
    """
    if key not in snapshot.models:
        raise MissingError(
            "not-encoded",
            f"The store {snapshot.backend.url} has no model {key}. 'wsa models' lists them.",
        )
    where = f"{names.model_path(key)}/spec.json"
    data = snapshot.read_model(key, "spec.json").get("spec.json", b"")
    spec = records.read_json(data, ModelSpec, where)
    if names.key_alias(key) != spec.alias or spec.key != key:
        raise DamagedError(
            "bad-record", f"{where} is the spec of another model. {how_to_remove(key)}"
        )
    return spec


def describe(snapshot: Snapshot, key: str) -> dict[str, Any]:
    """Return a registered model as a row of a table."""
    spec = read_spec(snapshot, key)
    embeddings = snapshot.embeddings(model=key)
    return {
        "key": key,
        "model": spec.title,
        "timm": spec.timm_name,
        "weights": spec.source,
        "license": spec.license,
        "output": spec.identity.output,
        "shape": list(spec.shape),
        "window": spec.identity.window,
        "precision": spec.identity.precision,
        "step_error": spec.step_error,
        "embeddings": sum(e.shape[0] for e in embeddings),
        "passes": sum(e.passes for e in embeddings),
    }


def how_to_remove(key: str) -> str:
    """Return the remedy for a model that cannot be read, to end a message."""
    record = records.record_path(names.model_path(key))
    return f"It was committed so: remove {record}, and encode again."
