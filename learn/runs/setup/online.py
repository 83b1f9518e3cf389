"""Configure a run that learns from the games it plays."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from wsa.learn.configs.algorithms import EvaluationConfig, OnlineConfig
from wsa.learn.configs.fusions import PIXELS
from wsa.learn.configs.network import NetworkConfig
from wsa.learn.envs import atari
from wsa.learn.fusion.losses import check_weight_losses
from wsa.learn.runs.config import OnlineRun
from wsa.learn.runs.setup.models import decoders_of
from wsa.learn.runs.setup.network import fit_network
from wsa.store.common.errors import UsageError
from wsa.store.format.records import Protocol, SegmentMeta
from wsa.store.objects.model_spec import read_spec
from wsa.store.objects.snapshot import Snapshot

# Each operation has a fixed cost, so small groups pay twice for what they overlap. On two cores,
# two groups make 0.7 times the steps of one with 8 environments. With 32, they make 0.8 times as many
# over `palette`, and equally many over `sr,vos`.
ENVS_OF_TWO_GROUPS = 64


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
    decode: Sequence[str] = (),
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
        match, decode: See `make_offline`.

    Raises:
        UsageError: If options exclude each other, the fusion cannot take the models, or a model of
            `decode` cannot be decoded.
        ConflictError: If wsa has no decoder of the weights of a model of `decode`.
    """
    atari.check_game(game)
    if match and network.fusion.name == PIXELS:
        if parameters:
            raise UsageError(
                "bad-option",
                "Give --match-parameters or --parameters, not both: with --fusion nature they mean the same.",
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
    metas = [] if config.end_to_end else snapshot.segments_encoded_by(game, config.inputs)
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
        "bad-option",
        f"--offline-fraction: the store has no data of {game} under {atari.describe(config.protocol)} "
        f"that all models have encoded. {remedy}; or leave out --offline-fraction.",
    )
