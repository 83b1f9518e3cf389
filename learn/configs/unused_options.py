"""Options of `wsa learn` that a run would not heed are refused, so that none is given in vain."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from wsa.learn.offline.bc import BCConfig
from wsa.learn.offline.dqn import DQNConfig
from wsa.learn.online.dqn import OnlineDQNConfig
from wsa.learn.online.ppo import PPOConfig
from wsa.store.common.errors import UsageError

# What each learner takes, offline and online, by what users call it.
OFFLINE: dict[str, Any] = {"cql": DQNConfig, "dqn": DQNConfig, "bc": BCConfig}
ONLINE: dict[str, Any] = {"ppo": PPOConfig, "dqn": OnlineDQNConfig}
ONLINE_ONLY = ("record", "parameters", "output", "encoder")
PLAYING = ("engine", "weights")
# What only a fusion of models has, and what heads with hidden layers have.
FUSION = ("fusion_preset", "fusion_size", "fusion_layers", "score_activation", "normaliser",
          "layer_norm", "temperature", "scorer_hidden", "dropout", "weight_init", "normalize",
          "weight_entropy_coef", "load_balance_coef")  # fmt: skip


def check_given(o: Any) -> None:
    """Compare the options given, which are those that are not as they are by default, with the run.

    Args:
        o: `LearnOptions`.

    Raises:
        UsageError: One of them would do nothing.
    """
    given = [f.name for f in dataclasses.fields(o) if getattr(o, f.name) != f.default]
    for name in given:
        why = next(_idle(o, name), "")
        if why:
            raise UsageError("bad-option", f"--{name.replace('_', '-')} {why}")


def _idle(o: Any, name: str) -> Iterator[str]:
    """Why an option would do nothing, if it would."""
    learners, others = (ONLINE, OFFLINE) if o.online else (OFFLINE, ONLINE)
    here = [algo for algo, kind in learners.items() if _takes(algo, kind, name)]
    there = [algo for algo, kind in others.items() if _takes(algo, kind, name)]
    if o.algo in learners and o.algo not in here and here + there:
        where = [f"--algo {algo}" for algo in here] or [f"--algo {algo}" for algo in there]
        if not here and o.online:
            where[-1] += " without --online"
        elif not here:
            where[-1] += " with --online"
        this = f"--algo {o.algo} {'with' if o.online else 'without'} --online"
        yield f"is an option of {' and '.join(where)}; this run is {this}. Leave it out."
    if name in ONLINE_ONLY and not o.online:
        yield "is an option of --online. Leave it out, or add --online."
    if name in PLAYING and not o.online and not o.eval_frequency:
        yield (
            "is of models while games are played, and this run plays none. Leave it out, or add "
            "--online or --eval-frequency."
        )
    if name == "eval_episodes" and not o.eval_frequency:
        yield "is an option of --eval-frequency. Leave it out, or add that."
    if o.fusion == "nature" and name in FUSION:
        yield "is an option of fusions; --fusion nature has no models. Leave it out."
    if name == "hidden" and (o.recurrent or o.fusion == "nature"):
        what = "--recurrent" if o.recurrent else "--fusion nature"
        yield f"has no meaning with {what}, whose heads are one linear map each. Leave it out."


def _takes(algo: str, kind: Any, name: str) -> bool:
    """Whether a learner heeds an option."""
    return name in kind.__struct_fields__ and (algo, kind, name) != ("dqn", DQNConfig, "cql_alpha")
