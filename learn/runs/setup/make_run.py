"""Make the configuration of a run: one that learns from stored segments, or from games it plays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import msgspec
import torch

from wsa.encode.registration.select import choose_models
from wsa.learn.configs.algorithms import EvaluationConfig, OfflineConfig, OnlineConfig
from wsa.learn.configs.fusions import PIXELS
from wsa.learn.configs.network import NetworkConfig
from wsa.learn.envs import atari
from wsa.learn.fusion.losses import check_weight_losses
from wsa.learn.networks.matching import match_parameters
from wsa.learn.runs.config import OfflineRun, OnlineRun
from wsa.learn.runs.network import make_network, parameters_of
from wsa.learn.runs.setup.models import context_key, decoders_of
from wsa.learn.runs.setup.warm_start import warm_start
from wsa.store.common.errors import UsageError
from wsa.store.format.records import Protocol, SegmentMeta
from wsa.store.objects.flat_map import shapes_of
from wsa.store.objects.model_spec import read_spec
from wsa.store.objects.snapshot import Snapshot

Run = TypeVar("Run", OfflineRun, OnlineRun)

# Each operation has a fixed cost, so small groups pay twice for what they overlap. On two cores,
# two groups make 0.7 times the steps of one with 8 environments. With 32, they make 0.8 times as many
# over `palette`, and equally many over `sr,vos`.
ENVS_OF_TWO_GROUPS = 64


def make_offline(
    snapshot: Snapshot,
    game: str,
    models: Sequence[str],
    context: str,
    seed: int,
    hyperparameters: OfflineConfig,
    protocol: str = "",
    network: NetworkConfig = NetworkConfig(),
    init: str = "",
    evaluation: EvaluationConfig = EvaluationConfig(),
    match: int = 0,
    decode: Sequence[str] = (),
) -> OfflineRun:
    """Configure a run that learns from stored segments.

    Models and context are aliases or keys; no models mean all that have encoded the game, and the
    context may be `mean`. `protocol` is needed if the store has data of several. `init` is the
    checkpoint of a run to start from, `match` the number of parameters to match with the width (0
    keeps it), and `decode` names models whose code the network decodes.

    Raises:
        MissingError: If there are no frames, or a model has not encoded them.
        UsageError: If the fusion cannot take the models or reach `match`, an alias fits several
            models, a model of `decode` cannot be decoded, or the game was played under several
            protocols and none is named: their scores must not be mixed.
        ConflictError: If wsa has no decoder of the weights of a model of `decode`.
    """
    atari.check_game(game)
    chosen = choose_models(snapshot, game, models)
    segments, played = _segments_and_protocol(snapshot, game, protocol)
    config = OfflineRun(
        store=snapshot.backend.url,
        game=game,
        models=tuple(chosen),
        context=context_key(context, chosen, lambda named: choose_models(snapshot, game, named)),
        seed=seed,
        segments=segments,
        protocol=played,
        network=network,
        hyperparameters=hyperparameters,
        evaluation=evaluation,
        init=init,
    )
    config = msgspec.structs.replace(config, decoders=decoders_of(snapshot, config.inputs, decode))
    check_weight_losses(hyperparameters, config.network.fusion.name)
    windows, shapes, _ = shapes_of(snapshot, game, config.inputs)
    return fit_network(config, windows, shapes, match)


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
            f"{game} was played under {len(protocols)} different protocols, all named "
            f"{protocols.pop().name}; 'wsa show {game}' shows how they differ. Their data and scores "
            "must not be mixed: collect each into its own store."
        )
    played = ", ".join(sorted({m.protocol.name for m in snapshot.segments(game)}))
    raise UsageError(
        f"{game} was played under these protocols: {played}. Their data and scores must not be "
        "mixed: choose one with --protocol."
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
    evaluation: EvaluationConfig = EvaluationConfig(),
    match: int = 0,
    decode: Sequence[str] = (),
) -> OnlineRun:
    """Configure a run that learns from the games it plays; see `make_offline`.

    The snapshot has the models; they and the context are keys. `parameters` is the approximate
    number of parameters of the end-to-end network.

    Raises:
        UsageError: If options exclude each other, the fusion cannot take the models, or a model of
            `decode` cannot be decoded.
        ConflictError: If wsa has no decoder of the weights of a model of `decode`.
    """
    atari.check_game(game)
    if match and network.fusion.name == PIXELS:
        if parameters:
            raise UsageError(
                "Give --match-parameters or --parameters, not both: with --fusion nature they mean the same."
            )
        parameters, match = match, 0
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
        evaluation=evaluation,
        init=init,
        env_groups=groups_of(hyperparameters) if models else 1,
    )
    if config.end_to_end:
        if config.inputs or config.mixes_stored:
            raise UsageError(
                "--fusion nature learns from pixels: leave out --models, --context and "
                "--offline-fraction."
            )
        metas = []
    else:
        if parameters:
            raise UsageError("--parameters is for --fusion nature.")
        check_weight_losses(hyperparameters, network.fusion.name)
        if not models:
            raise UsageError("Name at least one model with --models.")
        metas = snapshot.segments_encoded_by(game, config.inputs)
        if config.mixes_stored:
            metas = _mixable_segments(snapshot, config, metas)
    specs = [read_spec(snapshot, key) for key in config.inputs]
    windows = tuple(spec.identity.window for spec in specs)
    config = msgspec.structs.replace(
        config,
        shapes=tuple(spec.shape for spec in specs),
        windows=windows if max(windows, default=1) > 1 else msgspec.UNSET,
        segments=tuple(meta.segment for meta in metas),
        decoders=decoders_of(snapshot, config.inputs, decode),
    )
    return fit_network(config, config.model_windows, config.shapes, match)


def groups_of(hyperparameters: OnlineConfig) -> int:
    """Number of groups of environments: one plays while the other's frames are embedded.

    The algorithm decides (`TWO_GROUPS`). DQN needs only one, because it updates its network while its
    newest frames are embedded.
    """
    two = hyperparameters.TWO_GROUPS and hyperparameters.num_envs >= ENVS_OF_TWO_GROUPS
    return 2 if two else 1


def _mixable_segments(
    snapshot: Snapshot, config: OnlineRun, encoded: Sequence[SegmentMeta]
) -> list[SegmentMeta]:
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
        f"--offline-fraction: the store has no data of {game} under {atari.describe(config.protocol)} "
        f"that all models have encoded. {remedy}; or leave out --offline-fraction."
    )


def fit_network(
    config: Run, windows: Sequence[int], shapes: Sequence[tuple[int, ...]], match: int
) -> Run:
    """Choose the network's width, and check the fusion and the checkpoint against the models.

    `match` is the number of parameters to match with the network's width; 0 keeps the width.

    Returns:
        The run with the width whose number of parameters is closest to `match`.

    Raises:
        UsageError: If the fusion cannot take the models, the checkpoint does not fit, no width
            comes close to `match`, or the network has no width to choose.
    """
    if match:

        def count(network: NetworkConfig) -> int:
            tried = msgspec.structs.replace(config, network=network)
            return parameters_of(tried, windows, shapes).total

        recurrent = getattr(config.hyperparameters, "recurrent", False)
        matched = match_parameters(config.network, match, count, linear_heads=recurrent)
        config = msgspec.structs.replace(config, network=matched)
    with torch.device("meta"):  # Shapes suffice for the check.
        network = make_network(config, windows, shapes)
        if config.init:
            warm_start(config, network)
    return config
