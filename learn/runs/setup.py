"""From the options of `wsa learn` to what a run is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from wsa.encode.models.paper import load
from wsa.encode.registration.select import choose_models, stored_name
from wsa.learn.configs.learn import LearnOptions
from wsa.learn.configs.unused_options import check_given
from wsa.learn.fusion.registry import NAMES
from wsa.learn.fusion.registry import make_config as make_fusion_config
from wsa.learn.networks.heads import NetworkConfig
from wsa.learn.offline.bc import BCConfig
from wsa.learn.offline.dqn import DQNConfig
from wsa.learn.runs.config import RunConfig, make_config
from wsa.learn.runs.origin import MEAN_CONTEXT, Origin, read_origin
from wsa.learn.runs.warm_start import change_models
from wsa.learn.training import checkpoint
from wsa.store.common import names
from wsa.store.common.errors import UsageError
from wsa.store.objects.snapshot import Snapshot

# Switches that are the preset's where they are not given, as options call them.
SWITCHES = ("score_activation", "normaliser", "layer_norm", "temperature", "scorer_hidden",
            "dropout", "weight_init")  # fmt: skip


def configure(o: LearnOptions, snapshot: Snapshot) -> RunConfig:
    """Settle what a run is, from its options.

    Raises:
        UsageError: Options contradict each other or are out of range.
        MissingError: No frames, a model has not encoded them, or no run to begin from.
    """
    check_given(o)
    check_changes(o)
    network, models, context, init = network_of(o), list(o.models), o.context, ""
    hyperparameters = hyperparameters_of(o)
    if context not in ("", MEAN_CONTEXT):
        context = stored_name(snapshot, context)
    if o.models or o.init:
        models = [stored_name(snapshot, name) for name in models]
        context = context or MEAN_CONTEXT
    else:
        models = choose_models(snapshot, o.game, ())
        if context not in ("", MEAN_CONTEXT):
            context = choose_models(snapshot, o.game, [context])[0]
        models, context = by_default(models, o.fusion, context)
    if o.init:

        def keys_of(some: Sequence[str]) -> list[str]:
            return choose_models(snapshot, o.game, [stored_name(snapshot, name) for name in some])

        path = checkpoint.latest(Path(o.init).absolute() / "checkpoints")
        before = read_origin(Path(o.init))
        if not before.models:
            raise UsageError(
                "bad-option",
                f"--init {o.init}: that run's network sees pixels, not embeddings. Begin from "
                "another, or from nothing.",
            )
        network, models, context = begin_from(o, before, network, context, keys_of)
        init = str(path)
    return make_config(
        snapshot, o.game, models, context, o.seed, hyperparameters, o.protocol, network, init
    )


def by_default(keys: Sequence[str], fusion: str, context: str) -> tuple[list[str], str]:
    """Which models are fused, and the context, where a user names none: as in the paper.

    Args:
        keys: Models that are there.
        fusion: A name of `wsa.learn.fusion.registry.NAMES`.
        context: A key, `mean`, or empty for `ae`, or `mean` if it or others are not there.

    Returns:
        All but the one that gives the context; and that.
    """
    if context == MEAN_CONTEXT:
        return list(keys), context
    given = [key for key in keys if names.key_alias(key) == load.CONTEXT]
    giving = context or (given[0] if len(given) == 1 else MEAN_CONTEXT)
    fused = [key for key in keys if key != giving]
    if not fused:
        return list(keys), context or MEAN_CONTEXT
    return fused, giving if context or NAMES[fusion].conditioned else MEAN_CONTEXT


def network_of(o: LearnOptions) -> NetworkConfig:
    """What the network is.

    Raises:
        UsageError: A number is out of range.
    """
    given = {name: getattr(o, name) for name in SWITCHES if getattr(o, name) is not None}
    if "weight_init" in given:
        given["init"] = given.pop("weight_init")
    fusion = make_fusion_config(
        o.fusion, o.fusion_preset, size=o.fusion_size, layers=o.fusion_layers, **given
    )
    if not all(units.isdecimal() for units in o.hidden):
        raise UsageError(
            "bad-option", f"--hidden {','.join(o.hidden)}: give numbers, for example 512,256."
        )
    return NetworkConfig(fusion, o.frame_stack, o.normalize, tuple(map(int, o.hidden)))


def hyperparameters_of(o: LearnOptions) -> DQNConfig | BCConfig:
    """What the learner takes.

    Raises:
        UsageError: A number is out of range.
    """
    kind = BCConfig if o.algo == "bc" else DQNConfig
    given = {name: getattr(o, name) for name in kind.__struct_fields__}
    values = {name: value for name, value in given.items() if value is not None}
    if o.algo == "dqn":
        values["cql_alpha"] = 0.0
    return kind(**values)


def begin_from(
    o: LearnOptions,
    before: Origin,
    network: NetworkConfig,
    context: str,
    keys_of: Callable[[Sequence[str]], list[str]],
) -> tuple[NetworkConfig, list[str], str]:
    """Network, models and context of a run that begins from another.

    Args:
        o: What the user asks for.
        before: The other run.
        network: What the options make of the network.
        context: Key, alias or `mean`.
        keys_of: Gives the keys of models by their names.

    Raises:
        UsageError: The options ask for what the other run is not, and do not say so.
    """
    if network not in (before.network, network_of(LearnOptions())):
        raise UsageError(
            "bad-option",
            f"--init {o.init}: its network is another than the options ask for. Leave out options "
            "of the network: they are that run's.",
        )
    added = keys_of(o.add) if o.add else []
    wanted = change_models(before.models, added, o.drop, before.network.fusion.name)
    if o.models and keys_of(o.models) != wanted:
        raise UsageError(
            "bad-option",
            f"--models are not those of {o.init}, which are {', '.join(before.models)}. Leave out "
            "--models, and say with --add and --drop what changes.",
        )
    ours = {before.context}
    if before.context != MEAN_CONTEXT:
        ours.add(names.key_alias(before.context))
    if o.context not in ("", MEAN_CONTEXT) and context not in ours:
        raise UsageError(
            "bad-option",
            f"--context {o.context}: the context of {o.init} is {before.context}, and its scorer "
            "was trained on that. Leave out --context.",
        )
    if before.context in before.models and before.context not in wanted:
        raise UsageError(
            "bad-option",
            f"--drop: {before.context} gives the context, which the scorer was trained on. Drop "
            "another model, or begin a new run.",
        )
    return before.network, wanted, before.context


def check_changes(o: LearnOptions) -> None:
    """Refuse to change the models of no run.

    Raises:
        UsageError: --add or --drop without --init.
    """
    if not o.init and (o.add or o.drop):
        raise UsageError(
            "bad-option",
            "--add and --drop change the models of a run that was trained: name it with --init. "
            "To choose a new run's models, use --models.",
        )
