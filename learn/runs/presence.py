"""Which of a run's models are present, after `wsa eval --without` or `--only`."""

from __future__ import annotations

from collections.abc import Sequence

from wsa.encode.registration.select import stored_name
from wsa.learn.configs.fusions import FUSIONS, PIXELS
from wsa.learn.fusion.build import fusion_class, why_all_models
from wsa.learn.runs.config import RunConfig
from wsa.store.common import names
from wsa.store.common.errors import UsageError
from wsa.store.objects.snapshot import Snapshot

Mask = tuple[bool, ...]


def mask_of(
    config: RunConfig, snapshot: Snapshot, *, without: Sequence[str] = (), only: Sequence[str] = ()
) -> Mask | None:
    """Whether each of a run's fused models is present; None if all are.

    Models to leave out or to keep are named as in `--models`.

    Raises:
        UsageError: If both are given, a model is not one of the run's, none is left, the context's
            model is left out, or the run's fusion needs all its models.
    """
    if without and only:
        raise UsageError("Give --without or --only, not both.")
    if not (without or only):
        return None
    option = "--only" if only else "--without"
    check_can_lose(config, option)
    named = {named_model(config.models, snapshot, name, option) for name in (*without, *only)}
    mask = tuple((key in named) == bool(only) for key in config.models)
    if not any(mask):
        raise UsageError(
            f"{option} leaves no model. Keep at least one of {', '.join(config.models)}."
        )
    left_out = {key for key, is_present in zip(config.models, mask, strict=True) if not is_present}
    if config.context in left_out:
        raise UsageError(
            f"{option} leaves out {config.context}, which provides the context that the scorer was "
            "trained on. Keep it."
        )
    return mask if left_out else None


def check_can_lose(config: RunConfig, option: str) -> None:
    """Refuse a run whose fusion needs all its models.

    Raises:
        UsageError: If the fusion needs all its models.
    """
    fusion = config.network.fusion.name
    if fusion == PIXELS:
        why = "the network sees grayscale pixels, and has no models to leave out"
    elif len(config.models) == 1:
        why = f"{config.models[0]} is the run's only model"
    elif not fusion_class(fusion).per_model:
        able = ", ".join(name for name in FUSIONS if can_lose(name))
        why = (
            f"{why_all_models(fusion)}, so the head needs all of them. Models can be left out with "
            f"{able}"
        )
    else:
        return
    raise UsageError(f"{option}: {why}.")


def can_lose(fusion: str) -> bool:
    """Return whether a fusion still works without one of its models."""
    return fusion != "single" and bool(fusion_class(fusion).per_model)


def named_model(models: Sequence[str], snapshot: Snapshot, name: str, option: str) -> str:
    """Find one of a run's models by its key, its alias, or its name as in `wsa encode --models`.

    Raises:
        UsageError: If none of them, or several, have this name.
    """
    fitting = names.keys_named(models, name)
    if not fitting and ":" in name:
        fitting = names.keys_named(models, stored_name(snapshot, name))
    if len(fitting) != 1:
        raise UsageError(
            f"{option} {name}: the run's models are {', '.join(models)}. Name one of them; "
            "use the key if an alias fits several."
        )
    return fitting[0]
