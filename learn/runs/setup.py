"""Turn a request for a run into its configuration: models, context, network, and data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import torch

from wsa.encode.configs import weights_files
from wsa.encode.models.paper import load
from wsa.encode.models.registry import (
    DEFAULT,
    Request,
    for_games,
    parse_request,
    typed_modules,
)
from wsa.encode.registration.select import choose_models, default_models, stored_name
from wsa.learn.configs.algorithms import (
    EvaluationConfig,
    OfflineConfig,
    OnlineConfig,
    PPOConfig,
)
from wsa.learn.configs.fusions import PIXELS
from wsa.learn.configs.learn import OnlineLiveOptions, PlayOptions, RunRequest, check_combination
from wsa.learn.configs.network import NetworkConfig
from wsa.learn.envs import atari
from wsa.learn.fusion.build import fusion_class
from wsa.learn.fusion.losses import check_weight_losses
from wsa.learn.networks.matching import match_parameters
from wsa.learn.runs.config import MEAN_CONTEXT, OfflineRun, OnlineRun, RunConfig, read_config
from wsa.learn.runs.network import make_network, parameters_of
from wsa.learn.runs.warm_start import change_models, warm_start
from wsa.learn.training import checkpoint
from wsa.store.common import names, user_code
from wsa.store.common.errors import UsageError
from wsa.store.format import records
from wsa.store.format.records import Protocol
from wsa.store.objects.flat_map import shapes_of
from wsa.store.objects.model_spec import read_spec
from wsa.store.objects.probe import MAX_STEP_ERROR
from wsa.store.objects.snapshot import Snapshot, take_snapshot

KeysOf = Callable[[Sequence[str]], list[str]]
"""Maps names of models to their keys."""

# Each operation has a fixed cost, so small groups pay twice for what they overlap. On two cores,
# two groups make 0.7 times the steps of one with 8 environments, and equally many with 32.
ENVS_OF_TWO_GROUPS = 32


def configure(
    request: RunRequest, snapshot: Snapshot, device: str = "cpu", *, dry_run: bool = False
) -> OfflineRun | OnlineRun:
    """Make the configuration of a run; an online run adds models that the store lacks.

    Args:
        request: The requested run.
        snapshot: The store.
        device: Device on which added models run.
        dry_run: Whether to refuse instead of adding models.

    Raises:
        UsageError: If options contradict each other or are out of range.
        MissingError: If there are no frames, a model has not encoded them, or the weights or the
            run to start from are missing.
    """
    atari.check_game(request.game)
    check_combination(request)
    user_code.type_in([request.fusion, request.algo])
    if request.fusion != PIXELS:
        fusion_class(request.fusion)  # Check before a model is opened or added.
    start, init = request.start, ""
    if (start.add or start.drop) and not start.init:
        raise UsageError(
            "bad-option",
            "--add and --drop change the models of a trained run: name the run with --init. To choose "
            "a new run's models, use --models.",
        )
    if start.init and request.method.match_parameters:
        raise UsageError(
            "bad-option",
            f"--match-parameters: the network comes from --init {start.init}, so its width is fixed. Leave "
            "it out.",
        )
    pixels = request.fusion == PIXELS
    if request.online:
        online = _OnlineModels(request, snapshot, device, dry_run)
        keys_of, default_keys = online.keys_of, online.default_keys
    else:

        def keys_of(requested: Sequence[str]) -> list[str]:
            return choose_models(
                snapshot, request.game, [stored_name(snapshot, s) for s in requested]
            )

        def default_keys() -> list[str]:
            return default_models(snapshot, request.game)

    before: RunConfig | None = None
    if start.init:
        init = str(checkpoint.latest(Path(start.init).absolute() / "checkpoints"))
        before = read_config(Path(start.init))
        if bool(before.models) == pixels:
            raise UsageError(
                "bad-option",
                f"--init {start.init}: one of the two networks sees pixels, the other embeddings. "
                "Start from another run, or from scratch.",
            )
    network = request.network_config
    if before and before.models and not pixels:
        network, models, context = _begin_from(request, before, keys_of)
    elif request.models or pixels or before:
        models = keys_of(request.models) if request.models else []
        context = _context_key(request.method.context or MEAN_CONTEXT, models, keys_of)
    else:
        context = _context_key(request.method.context, [], keys_of)
        models, context = by_default(default_keys(), request.fusion, context)
    if not request.online:
        assert isinstance(request.algorithm, OfflineConfig)
        return make_offline(
            snapshot, request.game, models, context, request.seed, request.algorithm,
            request.data.protocol, network, init, request.evaluation, request.method.match_parameters,
        )  # fmt: skip
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
        parameters=play.parameters,
        init=init,
        evaluation=request.evaluation,
        match=request.method.match_parameters,
    )


def weights_of(request: RunRequest) -> dict[str, str]:
    """Weights files and modules of users' own models, by alias.

    Those of `--weights`, and those typed as models: typing a module's name permits its import.
    """
    typed = typed_modules([*request.models, request.method.context, *request.start.add])
    return typed | weights_files(request.live.weights)


class _OnlineModels:
    """Resolves models of an online run; adds those that the store lacks."""

    def __init__(self, request: RunRequest, snapshot: Snapshot, device: str, dry_run: bool) -> None:
        assert isinstance(request.live, OnlineLiveOptions)
        self._backend, self._device, self._dry_run = snapshot.backend, device, dry_run
        self._game = request.game
        self._weights, self._output = weights_files(request.live.weights), request.live.output

    def keys_of(self, requested: Sequence[str]) -> list[str]:
        """Return the keys of models, given aliases or keys.

        Raises:
            UsageError: If an alias fits several models.
        """
        # Take a snapshot for each name: a model that was just added may be named twice.
        keys = [self._key(take_snapshot(self._backend), name) for name in requested]
        return list(dict.fromkeys(keys))

    def default_keys(self) -> list[str]:
        """Keys of wsa's default models, even if the store has other models with their aliases."""
        from wsa.encode.registration.identity import find_model  # Imported here: it imports timm.

        keys = []
        for name in DEFAULT:
            snapshot = take_snapshot(self._backend)
            model = find_model(snapshot, self._request(name))
            keys.append(model.key if model else self._add(snapshot, name))
        return keys

    def _key(self, snapshot: Snapshot, name: str) -> str:
        alias = stored_name(snapshot, name)
        fitting = [
            key
            for key in snapshot.models
            if alias in (key, names.key_alias(key))
            and read_spec(snapshot, key).game in ("", self._game)
        ]
        if len(fitting) > 1:
            raise UsageError(
                "bad-option",
                f"{name} may be any of {', '.join(fitting)}; give the whole key. 'wsa models' shows "
                "how they differ.",
            )
        return fitting[0] if fitting else self._add(snapshot, name)

    def _add(self, snapshot: Snapshot, name: str) -> str:
        if self._dry_run:
            raise UsageError(
                "bad-option",
                f"--dry-run: the store has no model {name} yet. Leave out --dry-run, or run "
                f"'wsa encode --models {name}' first.",
            )
        from wsa.encode.registration.register import register

        return register(snapshot, self._request(name), MAX_STEP_ERROR, self._device).spec.key

    def _request(self, name: str) -> Request:
        """Parse a model as typed; fit it to the game if its output depends on the game."""
        requests = for_games([parse_request(name, self._weights, self._output)], [self._game])
        if not requests:
            raise UsageError(
                "bad-option",
                f"--output {self._output} is for another game, not {self._game}. Leave out --output.",
            )
        return requests[0]


def _context_key(context: str, models: Sequence[str], keys_of: KeysOf) -> str:
    """Key of the model that gives the context: a fused one, or another."""
    if context in ("", MEAN_CONTEXT):
        return context
    fitting = [key for key in models if context in (key, names.key_alias(key))]
    if len(fitting) > 1:
        raise UsageError(
            "bad-option",
            f"--context {context} may be any of {', '.join(fitting)}; give the whole key. "
            "'wsa models' shows how they differ.",
        )
    return fitting[0] if fitting else keys_of([context])[0]


def by_default(keys: Sequence[str], fusion: str, context: str) -> tuple[list[str], str]:
    """Choose the fused models and the context if the user names no models, as in the paper.

    Args:
        keys: Keys of the available models.
        fusion: A key of `wsa.learn.configs.fusions.FUSIONS`.
        context: A key, `mean`, or empty. Empty selects the model `ae`, or `mean` if there is not
            exactly one.

    Returns:
        Keys of all models but the one that gives the context, and the context; `mean` if it was
        not given and the fusion uses none.
    """
    if context == MEAN_CONTEXT:
        return list(keys), context
    context_keys = [key for key in keys if names.key_alias(key) == load.CONTEXT]
    chosen = context or (context_keys[0] if len(context_keys) == 1 else MEAN_CONTEXT)
    fused = [key for key in keys if key != chosen]
    if not fused:
        return list(keys), context or MEAN_CONTEXT
    return fused, chosen if context or fusion_class(fusion).conditioned else MEAN_CONTEXT


def _begin_from(
    request: RunRequest, before: RunConfig, keys_of: KeysOf
) -> tuple[NetworkConfig, list[str], str]:
    """Network, models, and context of a run that starts from another.

    Raises:
        UsageError: If the options contradict the other run without `--add` or `--drop`.
    """
    start, network = request.start, request.network_config
    default, as_before = NetworkConfig(), network
    if network.clip_embeddings == default.clip_embeddings:  # Runs from before clipping have 0.
        clip = before.network.clip_embeddings
        as_before = msgspec.structs.replace(network, clip_embeddings=clip)
    if network != default and as_before != before.network:
        raise UsageError(
            "bad-option",
            f"--init {start.init}: the network options differ from that run's network. Leave out the "
            "network options; the run's own are used.",
        )
    added = keys_of(start.add) if start.add else []
    models = change_models(before.models, added, start.drop, before.network.fusion.name)
    if request.models and keys_of(request.models) != models:
        raise UsageError(
            "bad-option",
            f"--models differ from those of {start.init}: {', '.join(before.models)}. Leave out "
            "--models, and use --add and --drop for changes.",
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
                "bad-option",
                f"--context {request.method.context}: the context of {start.init} is {before.context}, "
                "and its scorer was trained on that. Leave out --context.",
            )
    if before.context in before.models and before.context not in models:
        raise UsageError(
            "bad-option",
            f"--drop: {before.context} provides the context that the scorer was trained on. Drop "
            "another model, or start a new run.",
        )
    return before.network, models, before.context


def make_offline(
    snapshot: Snapshot,
    game: str,
    models: Sequence[str],
    context: str,
    seed: int,
    hyperparameters: OfflineConfig,
    protocol: str = "",
    network: NetworkConfig | None = None,
    init: str = "",
    evaluation: EvaluationConfig | None = None,
    match: int = 0,
) -> OfflineRun:
    """Configure a run that learns from stored segments.

    Args:
        snapshot: The store.
        game: ALE game id.
        models: Aliases or keys of the fused models; if empty, all that have encoded the game.
        context: Alias or key of the model that gives the context, or `mean`.
        seed: Seed of the initialization and minibatches.
        hyperparameters: Hyperparameters; their type selects the algorithm.
        protocol: Name of the data's protocol, if the store has several.
        network: Fusion, frames in a state, and heads.
        init: Checkpoint of a run to start from.
        evaluation: Settings of the periodic evaluation games.
        match: Number of parameters to match with the network's width; 0 to keep the width.

    Raises:
        MissingError: If there are no frames, or a model has not encoded them.
        UsageError: If the fusion cannot take the models or reach `match`, an alias fits several
            models, or the game was played under several protocols and none is named: their scores
            must not be mixed.
    """
    atari.check_game(game)
    chosen = choose_models(snapshot, game, models)

    def keys_of(requested: Sequence[str]) -> list[str]:
        return choose_models(snapshot, game, requested)

    segments, played = _segments_and_protocol(snapshot, game, protocol)
    config = OfflineRun(
        store=snapshot.backend.url,
        game=game,
        models=tuple(chosen),
        context=_context_key(context, chosen, keys_of),
        seed=seed,
        segments=segments,
        protocol=played,
        network=network or NetworkConfig(),
        hyperparameters=hyperparameters,
        evaluation=evaluation or EvaluationConfig(),
        init=init,
    )
    check_weight_losses(hyperparameters, config.network.fusion.name)
    windows, shapes, _ = shapes_of(snapshot, game, config.inputs)
    if match:
        matched = _matched(config, windows, shapes, match)
        config = msgspec.structs.replace(config, network=matched)
    with torch.device("meta"):  # Shapes suffice to check the fusion and the checkpoint.
        network_made = make_network(config, windows, shapes)
        if init:
            warm_start(config, network_made)
    return config


def _matched(
    config: OfflineRun | OnlineRun,
    windows: Sequence[int],
    shapes: Sequence[tuple[int, ...]],
    target: int,
) -> NetworkConfig:
    """A run's network with the width whose number of parameters is closest to `target`.

    Raises:
        UsageError: If no width comes close, or the network has no width to choose.
    """

    def count(network: NetworkConfig) -> int:
        tried = msgspec.structs.replace(config, network=network)
        return parameters_of(tried, windows, shapes).total

    recurrent = getattr(config.hyperparameters, "recurrent", False)
    return match_parameters(config.network, target, count, linear_heads=recurrent)


def _segments_and_protocol(
    snapshot: Snapshot, game: str, protocol: str
) -> tuple[tuple[str, ...], Protocol]:
    """The segments that a run learns from, and their protocol.

    Raises:
        UsageError: If they have several protocols, or several that share a name.
    """
    segments = [m for m in snapshot.segments(game) if protocol in ("", m.protocol.name)]
    protocols = {meta.protocol for meta in segments}
    if len(protocols) == 1:
        return tuple(meta.segment for meta in segments), protocols.pop()
    if len({p.name for p in protocols}) == 1:
        raise UsageError(
            "bad-option",
            f"{game} was played under {len(protocols)} different protocols, all named "
            f"{protocols.pop().name}; 'wsa show {game}' shows how they differ. Their data and scores "
            "must not be mixed: collect each into its own store.",
        )
    played = ", ".join(sorted({m.protocol.name for m in snapshot.segments(game)}))
    raise UsageError(
        "bad-option",
        f"{game} was played under these protocols: {played}. Their data and scores must not be "
        "mixed: choose one with --protocol.",
    )


def make_online(
    snapshot: Snapshot,
    game: str,
    models: Sequence[str],
    context: str,
    network: NetworkConfig,
    protocol: Protocol,
    seed: int,
    hyperparameters: OnlineConfig,
    *,
    parameters: int = 0,
    init: str = "",
    evaluation: EvaluationConfig | None = None,
    match: int = 0,
) -> OnlineRun:
    """Configure a run that learns from the games it plays.

    Args:
        snapshot: A snapshot that has the models.
        game: ALE game id.
        models: Keys of the fused models.
        context: Key of the model that gives the context, or `mean`.
        network: Fusion, frames in a state, and heads.
        protocol: Protocol to play under.
        seed: Seed of the initialization, environments, and minibatches.
        hyperparameters: Hyperparameters; their type selects the algorithm.
        parameters: Approximate number of parameters of the end-to-end network.
        init: Checkpoint of a run to start from.
        evaluation: Settings of the periodic evaluation games.
        match: See `make_offline`.

    Raises:
        UsageError: If options exclude each other, or the fusion cannot take the models.
    """
    atari.check_game(game)
    if match and network.fusion.name == PIXELS:
        if parameters:
            raise UsageError(
                "bad-option",
                "Give --match-parameters or --parameters, not both: with --fusion nature they mean the same.",
            )
        parameters = match
    config = OnlineRun(
        store=snapshot.backend.url,
        game=game,
        models=tuple(models),
        context=context,
        shapes=(),
        seed=seed,
        segments=(),
        protocol=protocol,
        network=network,
        parameters=parameters,
        hyperparameters=hyperparameters.settled(),
        evaluation=evaluation or EvaluationConfig(),
        init=init,
        env_groups=groups_of(hyperparameters) if models else 1,
    )
    if config.end_to_end and (config.inputs or config.mixes_stored):
        raise UsageError(
            "bad-option",
            "--fusion nature learns from pixels: leave out --models, --context and "
            "--offline-fraction.",
        )
    if parameters and not config.end_to_end:
        raise UsageError("bad-option", "--parameters is for --fusion nature.")
    if not config.end_to_end:
        check_weight_losses(hyperparameters, network.fusion.name)
    if not config.end_to_end and not models:
        raise UsageError("bad-option", "Name at least one model with --models.")
    metas = [] if config.end_to_end else _encoded_by(snapshot, game, config.inputs)
    if config.mixes_stored:
        metas = _mixable_segments(snapshot, config, metas)
    specs = [read_spec(snapshot, key) for key in config.inputs]
    windows = tuple(spec.identity.window for spec in specs)
    config = msgspec.structs.replace(
        config,
        shapes=tuple(spec.shape for spec in specs),
        windows=windows if max(windows, default=1) > 1 else msgspec.UNSET,
        segments=tuple(meta.segment for meta in metas),
    )
    if match and not config.end_to_end:
        matched = _matched(config, config.model_windows, config.shapes, match)
        config = msgspec.structs.replace(config, network=matched)
    with torch.device("meta"):  # Shapes suffice to check the fusion and the checkpoint.
        network_made = make_network(config, config.model_windows, config.shapes)
        if init:
            warm_start(config, network_made)
    return config


def groups_of(hyperparameters: OnlineConfig) -> int:
    """Number of groups of environments: one plays while the other's frames are embedded.

    Only PPO uses two: DQN updates its network while its newest frames are embedded.
    """
    ppo = isinstance(hyperparameters, PPOConfig)
    return 2 if ppo and hyperparameters.num_envs >= ENVS_OF_TWO_GROUPS else 1


def _mixable_segments(
    snapshot: Snapshot, config: OnlineRun, encoded: Sequence[records.SegmentMeta]
) -> list[records.SegmentMeta]:
    """Those of the encoded segments that were played under the run's protocol.

    Raises:
        UsageError: If there are none: data of another protocol must not be mixed in.
    """
    same_protocol = [meta for meta in encoded if meta.protocol == config.protocol]
    if same_protocol:
        return same_protocol
    game, played = config.game, {m.protocol for m in snapshot.segments(config.game)}
    if config.protocol in played:
        remedy = f"Encode its data: wsa encode --game {game} --models ..."
    elif played:
        others = "; ".join(sorted(map(atari.describe, played)))
        remedy = (
            f"Its data was played under another protocol: {others}. Choose that with --protocol, or "
            "collect data under this run's protocol"
        )
    else:
        remedy = f"Collect and encode some: wsa collect --game {game}"
    raise UsageError(
        "bad-option",
        f"--offline-fraction: the store has no data of {game} under {atari.describe(config.protocol)} "
        f"that all models have encoded. {remedy}; or leave out --offline-fraction.",
    )


def _encoded_by(snapshot: Snapshot, game: str, models: Sequence[str]) -> list[records.SegmentMeta]:
    """Segments of a game that all the models have encoded."""
    if game not in snapshot.games:
        return []
    done = [{e.segment for e in snapshot.embeddings(game, key)} for key in models]
    return [m for m in snapshot.segments(game) if all(m.segment in each for each in done)]
