"""Configure the run that a command line asks for."""

from __future__ import annotations

from pathlib import Path

from wsa.learn.configs.algorithms import OfflineConfig, OnlineConfig
from wsa.learn.configs.flags import as_flag
from wsa.learn.configs.fusions import PIXELS
from wsa.learn.configs.learn import (
    PlayOptions,
    RunRequest,
    StoredDataOptions,
    check_combination,
    network_options,
)
from wsa.learn.configs.network import FrameStack, NetworkConfig, pixel_network
from wsa.learn.envs import atari
from wsa.learn.fusion.build import fusion_class
from wsa.learn.runs.config import MEAN_CONTEXT, OfflineRun, OnlineRun, RunConfig, read_config
from wsa.learn.runs.data import encoded_part
from wsa.learn.runs.presence import named_model
from wsa.learn.runs.setup.make_run import make_offline, make_online
from wsa.learn.runs.setup.models import (
    KeysOf,
    OnlineModels,
    StoredModels,
    by_default,
    context_key,
)
from wsa.learn.runs.setup.warm_start import change_models
from wsa.learn.training import checkpoint
from wsa.store.common import names, user_code
from wsa.store.common.errors import UsageError
from wsa.store.objects.snapshot import Snapshot, take_snapshot


def configure(
    request: RunRequest, snapshot: Snapshot, device: str = "cpu", *, dry_run: bool = False
) -> OfflineRun | OnlineRun:
    """Make the configuration of a run; an online run adds models that the store lacks.

    Added models run on `device`. A dry run refuses instead of adding them.

    Raises:
        UsageError: If options contradict each other or are out of range.
        MissingError: If there are no frames, a model has not encoded them, or the weights or the
            run to start from are missing.
    """
    atari.check_game(request.game)
    check_combination(request)
    user_code.type_in([request.fusion, request.algo])
    pixels = request.fusion == PIXELS
    if not pixels:
        fusion_class(request.fusion)  # Check before a model is opened or added.
    init, before = _run_to_start_from(request)
    network = _network_of(request, before) if before else request.network_config
    encoded_only = isinstance(request.data, StoredDataOptions) and request.data.encoded_only
    available = (
        OnlineModels(request, snapshot, device, dry_run)
        if request.online
        else StoredModels(snapshot, request.game, partly=encoded_only)
    )
    if before and not pixels:
        models, context = begin_from(request, before, snapshot, available.keys_of)
    elif request.models or pixels:
        models = available.keys_of(request.models) if request.models else []
        context = context_key(request.method.context or MEAN_CONTEXT, models, available.keys_of)
    else:
        context = context_key(request.method.context, [], available.keys_of)
        models, context = by_default(available.default_keys(), request.fusion, context)
    kept = before.decoders.keys() & {*models, context} if before else ()
    decode = (*request.method.decode, *kept)
    if not request.online:
        assert isinstance(request.algorithm, OfflineConfig)
        if encoded_only:
            inputs = {*models, context} - {"", MEAN_CONTEXT}
            snapshot = encoded_part(snapshot, request.game, inputs)
        return make_offline(
            snapshot,
            request.game,
            models,
            context,
            request.seed,
            request.algorithm,
            protocol=request.data.protocol,
            network=network,
            init=init,
            evaluation=request.evaluation,
            match=request.method.match_parameters,
            decode=decode,
        )
    assert isinstance(request.algorithm, OnlineConfig) and isinstance(request.data, PlayOptions)
    play = request.data
    return make_online(
        take_snapshot(snapshot.backend),
        request.game,
        models,
        context,
        network,
        before.protocol
        if before and not play.protocol
        else atari.protocol(
            request.game, play.protocol or "classic", max_steps=play.max_episode_steps
        ),
        request.seed,
        request.algorithm,
        parameters=_parameters_of(request, play, before),
        init=init,
        evaluation=request.evaluation,
        match=request.method.match_parameters,
        decode=decode,
    )


def _run_to_start_from(request: RunRequest) -> tuple[str, RunConfig | None]:
    """Checkpoint and configuration of the run of `--init`; "" and None without it.

    Raises:
        UsageError: If other options do not fit.
    """
    start = request.start
    if not start.init:
        if start.add or start.drop:
            raise UsageError(
                "--add and --drop change the models of a trained run: name the run with --init. To "
                "choose a new run's models, use --models."
            )
        return "", None
    if request.method.match_parameters:
        raise UsageError(
            f"--match-parameters: the network comes from --init {start.init}, so its width is fixed. "
            "Leave it out."
        )
    init = str(checkpoint.latest(Path(start.init).absolute() / "checkpoints"))
    before = read_config(Path(start.init))
    if bool(before.models) == (request.fusion == PIXELS):
        raise UsageError(
            f"--init {start.init}: one of the two networks sees pixels, the other embeddings. "
            "Start from another run, or from scratch."
        )
    return init, before


def _network_of(request: RunRequest, before: RunConfig) -> NetworkConfig:
    """Network of a run that starts from another: the other run's.

    Raises:
        UsageError: If a network option differs from both its default and the other run's network.
    """
    default = NetworkConfig() if before.models else pixel_network(FrameStack().frame_stack)
    asked, plain, own = map(network_options, (request.network_config, default, before.network))
    differ = [name for name in asked if asked[name] not in (plain[name], own[name])]
    if differ:
        raise _other_network(
            request,
            ", ".join(as_flag(name, asked[name]) for name in differ),
            ", ".join(as_flag(name, own[name]) for name in differ),
        )
    return before.network


def _parameters_of(request: RunRequest, play: PlayOptions, before: RunConfig | None) -> int:
    """Approximate number of parameters of a network on pixels; the other run's with `--init`.

    Raises:
        UsageError: If another number is asked for.
    """
    own = before.parameters if isinstance(before, OnlineRun) else play.parameters
    if play.parameters not in (0, own):
        raise _other_network(
            request,
            f"--parameters {play.parameters}",
            f"--parameters {own}" if own else "CleanRL's widths",
        )
    return own


def _other_network(request: RunRequest, asked: str, own: str) -> UsageError:
    return UsageError(
        f"{asked}: --init {request.start.init} starts from a network with {own}, and keeps it. Leave "
        "out what differs, or start a new run without --init."
    )


def begin_from(
    request: RunRequest, before: RunConfig, snapshot: Snapshot, keys_of: KeysOf
) -> tuple[list[str], str]:
    """Models and context of a run that starts from another.

    Raises:
        UsageError: If the options contradict the other run without `--add` or `--drop`.
    """
    start = request.start
    added = keys_of(start.add) if start.add else []
    dropped = {named_model(before.models, snapshot, name, "--drop") for name in start.drop}
    models = change_models(before.models, added, dropped, before.network.fusion.name)
    if request.models and keys_of(request.models) != models:
        raise UsageError(
            f"--models differ from those of {start.init}: {', '.join(before.models)}. Leave out "
            "--models, and use --add and --drop for changes."
        )
    if request.method.context not in ("", MEAN_CONTEXT):
        known_names = {before.context}
        if before.context != MEAN_CONTEXT:
            known_names.add(names.key_alias(before.context))
        if (
            request.method.context not in known_names
            and keys_of([request.method.context])[0] not in known_names
        ):
            raise UsageError(
                f"--context {request.method.context}: the context of {start.init} is {before.context}, "
                "and its scorer was trained on that. Leave out --context."
            )
    if before.context in before.models and before.context not in models:
        raise UsageError(
            f"--drop: {before.context} provides the context that the scorer was trained on. Drop "
            "another model, or start a new run."
        )
    return models, before.context
