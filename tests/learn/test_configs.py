"""The registries of algorithms and fusions: flags, and what a run's configuration decodes to."""

from __future__ import annotations

import importlib
import inspect
import re
from collections import Counter
from pathlib import Path
from typing import Any, get_type_hints

import command_kit
import msgspec
import pytest

from wsa import cli
from wsa.learn.configs.algorithms import (
    OFFLINE,
    ONLINE,
    AnyOffline,
    AnyOnline,
    OnlineDQNConfig,
    PPOConfig,
)
from wsa.learn.configs.fusions import FUSIONS, PIXELS
from wsa.learn.configs.learn import Training, check_combination
from wsa.learn.fusion.base import Fusion
from wsa.learn.fusion.build import fusion_class
from wsa.store.common.errors import UsageError

ALGORITHMS = [(name, online) for online, of in ((False, OFFLINE), (True, ONLINE)) for name in of]


def config_of(name, online):
    return (ONLINE if online else OFFLINE)[name]


@pytest.mark.parametrize(("name", "online"), ALGORITHMS)
def test_an_algorithm_has_flags_and_decodes(name, online):
    """Its flags clash with no other option, its tag is its own, and reports call it by its name."""
    switch = {"online": True} if online else {}
    parsed = command_kit.options("learn", algo=name, **switch)
    assert type(parsed.algorithm) is config_of(name, online)
    assert name == parsed.algorithm.NAME
    written = msgspec.json.encode(parsed.algorithm)
    any_of: Any = AnyOnline if online else AnyOffline
    assert msgspec.json.decode(written, type=any_of) == parsed.algorithm
    module, _, learner = parsed.algorithm.LEARNER.partition(":")
    assert callable(getattr(importlib.import_module(module), learner))


@pytest.mark.parametrize(("name", "online"), ALGORITHMS)
def test_options_of_another_algorithm_are_refused(name, online):
    """Each is refused, with the algorithms that have it, where another was chosen."""
    mine = set(config_of(name, online).__struct_fields__)
    for other, as_online in ALGORITHMS:
        foreign = mine - set(config_of(other, as_online).__struct_fields__)
        switch = {"online": True} if as_online else {}
        for field in foreign:
            with pytest.raises(UsageError, match=f"--{field.replace('_', '-')} is an option of"):
                command_kit.options("learn", algo=other, **switch, **{field: 1})


@pytest.mark.parametrize(("name", "online"), ALGORITHMS)
def test_numbers_are_finite(name, online):
    config: Any = config_of(name, online)
    hints = get_type_hints(config)
    fields = [f for f in config.__struct_fields__ if hints[f] in (float, float | None)]
    assert "learning_rate" in fields
    for field in fields:
        with pytest.raises(UsageError, match="nan"):
            config(**{field: float("nan")})


@pytest.mark.parametrize(
    ("config", "settled", "first"),
    [
        (PPOConfig(num_envs=4, num_steps=64), False, 512),
        (PPOConfig(num_envs=4, num_steps=64), True, 256),
        (OnlineDQNConfig(learning_starts=500), True, 500),
    ],
)
def test_the_first_update_follows_what_it_learns_from(config, settled, first):
    assert config.first_update(settled) == first


def test_a_clipping_range_needs_clipping():
    how = {"online": True, "algo": "ppo", "vf_clip_coef": 0.2, "game": "Pong"}
    check_combination(command_kit.options("learn", **how))
    with pytest.raises(UsageError, match="no effect without --clip-vloss"):
        check_combination(command_kit.options("learn", **how, clip_vloss=False))


def test_options_that_no_fusion_reads_are_refused():
    for fusion, option in (
        ("lin", "temperature"),
        ("wsa", "fusion_layers"),
        ("dpa", "scorer_hidden"),
    ):
        flag = f"--{option.replace('_', '-')}"
        with pytest.raises(UsageError, match=f"{flag} has no effect with --fusion {fusion}"):
            command_kit.options("learn", fusion=fusion, **{option: 1})
    assert (
        command_kit.options("bench", fusions="lin,wsa", temperature=2.0).network.fusion.temperature
        == 2
    )
    with pytest.raises(UsageError, match="has no effect with --fusions lin,mean"):
        command_kit.options("bench", fusions="lin,mean", temperature=2.0)


def test_tags_are_unique():
    for of in (OFFLINE, ONLINE):
        tags = Counter(config.__struct_config__.tag for config in of.values())
        assert set(tags.values()) == {1}


def test_the_help_and_the_docs_name_every_algorithm_and_fusion():
    root = Path(__file__).parents[2]
    explained = (root / "docs/explain/wsa.md").read_text()
    help_text = inspect.getsource(Training)
    for name, online in ALGORITHMS:
        assert f"`{name}`" in explained, f"docs/explain/wsa.md does not explain {name}"
        listed = re.search(f"{'online' if online else 'Offline'} ([^;.]+)[;.]", help_text)
        assert listed and name in listed[1].split(", "), name
    for name in FUSIONS:
        assert name == "wsa" or f"| `{name}` |" in explained, f"docs/explain/wsa.md has no {name}"


@pytest.mark.parametrize("name", FUSIONS)
def test_a_fusion_has_a_class_and_a_flag(name):
    assert issubclass(fusion_class(name), Fusion)
    assert command_kit.options("learn", fusion=name).network_config.fusion.name == name


def test_pixels_refuse_the_options_of_fusions():
    how = {"online": True, "algo": "ppo", "fusion": PIXELS}
    assert command_kit.options("learn", **how).network_config.fusion.name == PIXELS
    for field in ("fusion_size", "dropout", "normalize", "hidden", "load_balance_coef"):
        with pytest.raises(UsageError, match="has no models"):
            command_kit.options("learn", **how, **{field: 1})


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"record": True}, "add --online"),
        ({"engine": "torch"}, None),
        ({"algo": "ppo"}, "--algo ppo needs --online"),
        ({"algo": "bc", "online": True}, "--online --algo bc: choose from ppo, dqn"),
        ({"fusion": PIXELS}, "--fusion nature needs --online"),
        (
            {"online": True, "algo": "ppo", "updates": 5},
            "option of .* without --online; this run is",
        ),
    ],
)
def test_options_of_another_kind_of_run_are_refused(flags, says):
    if says is None:
        assert command_kit.options("learn", **flags)
        return
    with pytest.raises(UsageError, match=says):
        command_kit.options("learn", **flags)


@pytest.mark.parametrize(("end", "last"), [(None, 0.5), (0.1, 0.1), (0.0, 0.0)])
def test_the_share_of_stored_data_is_constant_without_an_end(end, last):
    how = {"online": True, "algo": "dqn", "offline_fraction": 0.5, "offline_fraction_end": end}
    config = command_kit.options("learn", **how).algorithm
    assert config.settled().offline_fraction_end == config.last_fraction == last
    assert config.stored_of(config.total_timesteps) == round(last * config.batch_size)


@pytest.mark.parametrize(
    "flags", [{}, {"encoder": "tcp://h:1"}, {"engine": "torch"}, {"store": "there"}]
)
def test_resuming_takes_options_of_the_machine_only(flags):
    parsed = command_kit.options("learn", resume="run", **flags)
    assert parsed.output.resume == "run"
    assert parsed.store == flags.get("store", "")


@pytest.mark.parametrize(
    "flag", ["--seed 2", "--online", "--algo ppo", "--updates=9", "--no-record"]
)
def test_options_that_a_resumed_run_would_ignore_are_refused(flag):
    name = flag.split("=")[0].split()[0].replace("no-", "")
    with pytest.raises(UsageError, match=f"{name} cannot be given with --resume.*--run-dir"):
        cli.parse("learn", ["--resume", "run", *flag.split()])


@pytest.mark.parametrize(
    "line", ["--online", "--algo ppo", "--fusion nature", "--online --algo bc", "--recurrent", ""]
)
def test_help_is_shown_beside_any_flags(line, capsys):
    assert cli.parse("learn", [*line.split(), "--help"]) is None
    assert "algorithm options" in capsys.readouterr().out
