"""`wsa.encoder("vit")`: a frozen model that embeds any image, without a store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from wsa.encode.inference.encoder import Encoder, choose_device
from wsa.encode.inference.reduction import Projection
from wsa.encode.models import networks, registry, screen
from wsa.encode.models.paper import catalog
from wsa.encode.registration import fit_reduction
from wsa.encode.registration.identity import identify, license_of
from wsa.store.common.errors import UsageError
from wsa.store.objects.model_spec import parse_output

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

    Image: TypeAlias = NDArray[np.uint8] | PILImage


def encoder(
    model: str,
    *,
    output: str = "",
    game: str = "",
    weights: Mapping[str, str] | None = None,
    precision: Literal["fp32", "tf32", "fp16", "bf16"] = "fp32",
    geometry: Literal["squash", "crop", "pad"] = "squash",
    engine: Literal["torch", "compile", "openvino"] = "torch",
    device: str = "auto",
) -> ImageEncoder:
    """Load a frozen model that embeds images.

    Args:
        model: A model as in `wsa encode --models`: an alias (`vit`), `timm:NAME`, either with
            `:random`, or your own `module:callable`.
        output: The embedding to return: `pooled` (the default), `cls`, `grid:N`, or `map`. Append
            `+pca:K`, fitted on the frames that ship with wsa, or `+rp:K` to reduce it. The paper's
            own encoders, `palette`, and `objects` have their own outputs.
        game: ALE game, needed by `palette` and `objects`, which are fitted for each game.
        weights: Paths of weights files, by alias.
        precision, geometry: As in `wsa encode`.
        engine: The inference engine.
        device: `auto`, `cpu`, or `cuda`.

    Raises:
        UsageError: If the model or the output does not exist.
        MissingError: If this machine lacks the weights or the engine.
        ConflictError: If the weights belong to another architecture.
    """
    fitted = model in screen.OUTPUTS
    has_own_outputs = fitted or model.removesuffix(":random") in catalog.NETWORKS
    output_name = output or ("" if has_own_outputs else "pooled")
    request = registry.parse_request(model, weights or {}, output_name, precision, geometry)
    if fitted:
        requests = registry.for_games([request], [game]) if game else []
        if not requests:
            raise UsageError(f"{model} is fitted to each game: name one, such as game='Pong'.")
        (request,) = requests
    parsed = parse_output(request.output)
    if parsed.game and not fitted:
        raise UsageError(
            f"output {output_name!r} is fitted on frames of a store: encode with it there, and "
            "open it with wsa.open(url).encoder(key)."
        )
    module = networks.build(request)
    identity = identify(module, request)
    inner = Encoder(
        module, identity.preprocessing, parsed, None, precision, choose_device(device), engine
    )
    if parsed.reduction == "rp":
        inner.basis = Projection(parsed.numbers).to(inner.device)
    elif parsed.reduction:
        inner.basis = fit_reduction.fit(inner, None, parsed, identity.window).to(inner.device)
    return ImageEncoder(inner, identity.window, license_of(module, request))


class ImageEncoder:
    """A frozen model for images. Get one with `wsa.encoder`.

    Attributes:
        encoder: The encoder that `wsa encode` runs.
        window: Number of consecutive frames that the model sees; 1 for nearly all models.
        license: License of the weights.
    """

    def __init__(self, encoder: Encoder, window: int, license: str) -> None:
        self.encoder, self.window, self.license = encoder, window, license

    def __call__(self, images: Image | Sequence[Image]) -> NDArray[np.float32]:
        """Embed one image, or several.

        Args:
            images: One image: (H, W, 3) RGB or (H, W) grayscale, uint8, or a Pillow image. Or
                several images: a list, of any sizes, or (n, H, W, 3). For a model that sees several
                frames: (n, window, H, W, 3), oldest first.

        Returns:
            Embeddings, float32: (*shape) for one image; (n, *shape) for several.

        Raises:
            UsageError: If the argument is not an image.
        """
        if self.window > 1:
            return self.encoder(_windows(images, self.window))
        if isinstance(images, np.ndarray) and images.ndim == 4:
            return self.encoder(_rgb(images, 4))
        if isinstance(images, (list, tuple)):
            if not images:
                raise UsageError("There are no images to embed.")
            # One by one, because sizes may differ. The batch size does not change an embedding.
            return np.concatenate([self.encoder(_rgb(image)[None]) for image in images])
        alone: NDArray[np.float32] = self.encoder(_rgb(images)[None])[0]
        return alone


def _rgb(image: Any, ndim: int = 3) -> NDArray[np.uint8]:
    """Convert an image to RGB, (..., H, W, 3) uint8."""
    if hasattr(image, "convert"):  # A Pillow image of any mode.
        image = np.asarray(image.convert("RGB"))
    pixels: NDArray[np.uint8] = np.asarray(image)
    if pixels.ndim == 2 and ndim == 3:
        pixels = np.repeat(pixels[..., None], 3, axis=-1)
    if pixels.dtype != np.uint8 or pixels.ndim != ndim or pixels.shape[-1] != 3 or not pixels.size:
        raise UsageError(
            f"An image must be (H, W, 3) or (H, W) uint8, or a Pillow image, not "
            f"{pixels.shape} {pixels.dtype}. Pixels from 0 to 1: multiply by 255 and round."
        )
    return pixels


def _windows(images: Any, window: int) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = np.asarray(images)
    if pixels.dtype != np.uint8 or pixels.ndim != 5 or pixels.shape[1] != window:
        raise UsageError(
            f"This model sees {window} frames: give (n, {window}, H, W, 3) uint8, oldest first."
        )
    return pixels
