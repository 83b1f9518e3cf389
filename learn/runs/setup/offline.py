"""Configure a run that learns from stored segments."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from wsa.encode.registration.select import choose_models
from wsa.learn.configs.algorithms import EvaluationConfig, OfflineConfig
from wsa.learn.configs.network import NetworkConfig
from wsa.learn.envs import atari
from wsa.learn.fusion.losses import check_weight_losses
from wsa.learn.runs.config import OfflineRun
from wsa.learn.runs.setup.models import context_key, decoders_of
from wsa.learn.runs.setup.network import fit_network
from wsa.store.common.errors import UsageError
from wsa.store.format.records import Protocol
from wsa.store.objects.flat_map import shapes_of
from wsa.store.objects.snapshot import Snapshot


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
    decode: Sequence[str] = (),
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
        decode: Names of the models whose code the network decodes.

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
        network=network or NetworkConfig(),
        hyperparameters=hyperparameters,
        evaluation=evaluation or EvaluationConfig(),
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
