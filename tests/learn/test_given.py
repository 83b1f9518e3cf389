from __future__ import annotations

from typing import Any

import pytest

from wsa.learn.configs.learn import LearnOptions
from wsa.learn.configs.unused_options import check_given
from wsa.store.common.errors import UsageError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"online": True, "algo": "dqn", "clip_coef": 0.2}, "--clip-coef is an option of --algo ppo;"),
        ({"online": True, "algo": "ppo", "train_frequency": 8}, "option of --algo dqn; this run"),
        ({"online": True, "algo": "ppo", "updates": 5}, "--updates .* without --online; this run"),
        ({"algo": "dqn", "total_timesteps": 5}, "--algo dqn with --online; this run is --algo dqn wit"),
        ({"algo": "dqn", "cql_alpha": 2.0}, "--cql-alpha is an option of --algo cql;"),
        ({"algo": "bc", "gamma": 0.9}, "option of --algo cql and --algo dqn;"),
        ({"record": True}, "add --online"),
        ({"engine": "torch"}, "this run plays none. Leave it out, or add --online or --eval-f"),
        ({"eval_episodes": 3}, "add that"),
        ({"online": True, "algo": "ppo", "fusion": "nature", "fusion_size": 9}, "has no models"),
        ({"online": True, "algo": "ppo", "recurrent": True, "hidden": ("9",)}, "one linear map"),
    ],
)  # fmt: skip
def test_an_option_that_would_do_nothing_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_given(LearnOptions(**options))


@pytest.mark.parametrize(
    "options",
    [
        {"eval_frequency": 5, "eval_episodes": 3, "engine": "torch"},
        {}, {"updates": 5, "cql_alpha": 2.0, "learning_rate": 1e-3, "hidden": ("9",)},
        {"online": True, "algo": "ppo", "clip_coef": 0.2, "record": True, "learning_rate": 1e-4},
        {"online": True, "algo": "dqn", "n_step": 3, "batch_size": 8, "offline_fraction": 0.5},
        {"online": True, "algo": "dqn", "fusion": "nature", "parameters": 9, "gamma": 0.9},
    ],
)  # fmt: skip
def test_others_are_let_through(options: dict[str, Any]) -> None:
    check_given(LearnOptions(**options))
