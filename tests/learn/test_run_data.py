"""What a run takes from its store, and what it refuses: models, context, fusions, and protocols."""

from __future__ import annotations

import shutil
from types import SimpleNamespace
from typing import Any

import pytest
from learn_kit import ALIASES, RESNET, add_play, plan_offline

from wsa.encode.models.registry import parse_request
from wsa.encode.registration.register import register
from wsa.encode.registration.select import choose_models
from wsa.learn.configs.fusions import FusionConfig
from wsa.learn.configs.learn import MethodOptions, RunRequest, StoredDataOptions
from wsa.learn.configs.network import NetworkConfig
from wsa.learn.runs.config import RunConfig
from wsa.learn.runs.data import open_data
from wsa.learn.runs.folder import new_folder
from wsa.learn.runs.setup.configure import configure
from wsa.learn.runs.setup.models import by_default
from wsa.store.common.errors import MissingError, UsageError
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

AE, SR, OKK, OTHER_AE = "ae-0123456789ab", "sr-0123456789ab", "okk-0123456789ab", "ae-ffffffffffff"


@pytest.fixture
def backend(breakout, tmp_path):
    """A copy of the encoded store."""
    shutil.copytree(breakout.backend.url, tmp_path / "copy")
    return open_store(str(tmp_path / "copy"))


@pytest.mark.parametrize(
    ("keys", "fusion", "asked", "fused", "context"),
    [
        ([AE, OKK, SR], "wsa", "", [OKK, SR], AE),
        ([AE, OKK, SR], "uniform", "", [OKK, SR], "mean"),  # It has no use for a context.
        ([OKK, SR], "wsa", "", [OKK, SR], "mean"),
        ([AE], "wsa", "", [AE], "mean"),
        ([AE, OTHER_AE, SR], "wsa", "", [AE, OTHER_AE, SR], "mean"),  # Two could be meant.
        ([AE, OKK, SR], "wsa", "mean", [AE, OKK, SR], "mean"),
        ([AE, OKK, SR], "wsa", SR, [AE, OKK], SR),
        ([SR], "wsa", SR, [SR], SR),
    ],
)
def test_the_autoencoder_gives_the_context_by_default(keys, fusion, asked, fused, context):
    assert by_default(keys, fusion, asked) == (fused, context)


def test_a_model_that_only_gives_the_context_sees_the_newest_frame():
    def shapes(models):
        config: Any = SimpleNamespace(
            models=models, inputs=[SR, OKK, AE], context=AE, decoders={},
            network=SimpleNamespace(frame_stack=4),
        )  # fmt: skip
        return RunConfig.inputs_of(config, (4, 1, 1), [(512,), (21, 21, 4), (16, 16, 64)]).shapes

    assert shapes([SR, OKK]) == ((1, 512), (4, 21, 21, 4), (1, 16, 16, 64))
    assert shapes([SR, OKK, AE]) == ((1, 512), (4, 21, 21, 4), (4, 16, 16, 64))


def test_models_are_chosen_by_alias_or_key_in_the_order_given(breakout):
    keys = breakout.models
    assert choose_models(breakout, "Breakout", []) == keys
    assert choose_models(breakout, "Breakout", ALIASES[::-1]) == keys[::-1]
    assert choose_models(breakout, "Breakout", [keys[1]]) == [keys[1]]
    assert choose_models(breakout, "Breakout", [ALIASES[0], keys[0], ALIASES[0]]) == [keys[0]]


def test_an_error_about_missing_data_names_the_command_that_makes_it(breakout, backend, tmp_path):
    new = open_store(str(tmp_path / "new"), create=True)
    with pytest.raises(MissingError, match=r"wsa collect --game Breakout$"):
        choose_models(take_snapshot(new), "Breakout", [])
    collected = add_play(new)
    with pytest.raises(MissingError, match=r"wsa encode --game Breakout$"):
        choose_models(collected, "Breakout", [])
    with pytest.raises(MissingError, match=r"wsa encode --game Breakout --models lite0$"):
        choose_models(collected, "Breakout", ["lite0"])
    with pytest.raises(UsageError, match="Did you mean Breakout"):
        plan_offline(breakout, game="breakout")
    with pytest.raises(MissingError, match="vit has not encoded every segment"):
        plan_offline(breakout, context="vit")
    key = breakout.models[0]
    longer = add_play(backend)
    for asked in (key, ALIASES[0]):
        command = f"wsa encode --game Breakout --models {RESNET} --output pooled"
        with pytest.raises(MissingError, match=f"{command}$"):
            choose_models(longer, "Breakout", [asked])


def test_a_run_may_learn_from_the_segments_that_its_models_have_encoded(breakout, backend):
    def plan(snapshot, **changes):
        data = StoredDataOptions(encoded_only=True)
        request = RunRequest(game="Breakout", data=data, **changes)
        return configure(request, snapshot)

    whole = {m.segment for m in breakout.segments("Breakout")}
    first, second = breakout.models
    longer = add_play(backend, [first])  # The second has not encoded these.
    assert set(plan(longer, models=(first,)).segments) == {m.segment for m in longer.segments()}
    both = plan(longer, models=(first, second))
    assert set(both.segments) == whole < {m.segment for m in longer.segments()}
    context = plan(longer, models=(first,), method=MethodOptions(context=second))
    assert set(context.segments) == whole
    assert set(plan(longer).models) == {first, second}  # By default, all that have encoded any.
    _, flat = open_data(both)
    assert flat is not None and len(flat.parts) == len(whole)
    with pytest.raises(MissingError, match="--encoded-only"):
        configure(RunRequest(game="Breakout", models=(second,)), longer)
    new = add_play(open_store(f"{backend.url}-2", create=True))
    with pytest.raises(MissingError, match=r"wsa encode --game Breakout --models lite0$"):
        configure(RunRequest(game="Breakout", models=("lite0",)), new)


def test_an_alias_of_two_models_is_refused(breakout, backend):
    other = register(take_snapshot(backend), parse_request(RESNET, {}, "grid:2"), 0.1).spec.key
    snapshot = add_play(backend, [*breakout.models, other])
    with pytest.raises(UsageError, match="give the whole key"):
        choose_models(snapshot, "Breakout", [ALIASES[0]])
    models = [breakout.models[0], other]
    with pytest.raises(UsageError, match=r"--context \S+ may be any of .* whole key"):
        plan_offline(snapshot, models=models, context=ALIASES[0])
    assert plan_offline(snapshot, models=models, context=other).context == other


def test_a_fusion_that_does_not_fit_the_models_is_refused(breakout):
    for name, message in (("cnn", "every model gives a vector"), ("single", "takes one model")):
        with pytest.raises(UsageError, match=message):
            plan_offline(breakout, network=NetworkConfig(FusionConfig(name)), context="mean")


def test_protocols_are_not_mixed(breakout, backend):
    models = breakout.models[:1]
    changes: dict[str, Any] = {"models": models, "context": "mean"}
    snapshot = add_play(backend, models, name="v5")
    with pytest.raises(UsageError, match=r"classic, v5.*choose one with --protocol"):
        plan_offline(snapshot, **changes)
    with pytest.raises(UsageError, match=r"classic, v5"):
        plan_offline(snapshot, **changes, protocol="custom")
    config = plan_offline(snapshot, **changes, protocol="v5")
    assert config.protocol.name == "v5" and len(config.protocol.actions) == 18
    assert 0 < len(config.segments) < len(snapshot.segments())
    _, flat = open_data(config)
    assert flat is not None and len(flat.steps) == 32
    snapshot = add_play(backend, models, max_steps=50)  # Another protocol called classic.
    with pytest.raises(UsageError, match="2 different protocols, all named classic"):
        plan_offline(snapshot, **changes, protocol="classic")


def test_runs_that_begin_in_one_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr("time.time", lambda: 7.5)
    config: Any = SimpleNamespace(game="Pong", seed=1, network=NetworkConfig())
    first = new_folder(tmp_path, config, "")
    first.mkdir()
    assert (first.name, new_folder(tmp_path, config, "").name) == (
        "Pong__wsa__1__7",
        "Pong__wsa__1__8",
    )
