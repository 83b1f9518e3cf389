"""What `wsa learn` takes: algorithms, fusions, variants, and runs that begin from others."""

import pytest
from command_kit import (
    COLLECT,
    ENCODE,
    LEARN,
    flip_bit,
    read_config,
    read_csv,
)

from wsa.encode.registration import register
from wsa.learn.runs import train

UPDATES = (*LEARN, "--updates", 4)
SIZE = UPDATES.index("--fusion-size")
WITHOUT_SIZE = (*UPDATES[:SIZE], *UPDATES[SIZE + 2 :])  # Some fusions have no such option.


def test_a_network_too_large_for_memory_is_one_line(filled):
    for size in (("--hidden", 10**10), ("--batch-size", 10**11), ("--hidden", 10**10, "--dry-run")):
        outcome = filled(*LEARN, *size)
        assert outcome.code == 6, outcome.err
        assert "not enough memory for" in outcome.error and "smaller --hidden" in outcome.error
        assert "Traceback" not in outcome.err


def test_a_finished_run_is_left_as_it_is(filled, unchanged, tmp_path):
    run = (*UPDATES, "--run-dir", "new", "--json")
    first = filled(*run)
    with unchanged():
        again = filled(*run)
    assert (first.json["updates"], again.json["updates"]) == (4, 0), again.err
    assert again.json["parameters"] == first.json["parameters"]
    assert "report new/report.html" in again.err
    flip_bit(tmp_path / "new" / "checkpoints" / "000000004.safetensors")
    assert filled(*run).code == 5


def test_a_finished_online_run_opens_no_model(filled, unchanged, monkeypatch):
    run = (
        "learn", "--online", "--algo", "ppo", "--game", "Breakout", "--total-timesteps", 16,
        "--num-envs", 1, "--num-steps", 16, "--num-minibatches", 2, "--run-dir", "new", "--json",
    )  # fmt: skip
    first = filled(*run)
    monkeypatch.delattr(register, "open_models")
    with unchanged():
        again = filled(*run)
    assert (first.json["steps"], again.json["steps"]) == (16, 0), again.err
    assert again.json["hit_rate"] == first.json["hit_rate"]


@pytest.mark.slow
def test_the_best_checkpoint_is_played_only_on_request(filled, tmp_path):
    learned = filled(*UPDATES, "--algo", "bc", "--save-best", "--run-dir", "new")
    assert learned.code == 0, learned.err
    assert read_config(tmp_path / "new")["hyperparameters"]["type"] == "bc"
    for which in ("final", "best"):
        played = filled("eval", "new", "--episodes", 1, "--checkpoint", which, "--json")
        assert played.json["checkpoint"] == which
    policies = [row["policy"] for row in read_csv(tmp_path / "new" / "eval.csv")]
    assert policies == ["run", "random", "best", "random"]
    outcome = filled("eval", "run", "--checkpoint", "best")
    assert outcome.code == 3 and "--save-best" in outcome.error


def test_a_misspelled_variant_is_refused(filled):
    outcome = filled("eval", "run", "--variant", "look:grey")
    assert outcome.code == 2 and "Did you mean look:gray" in outcome.error


@pytest.mark.variants
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--algo", "dqn", "--n-step", 3), {"type": "dqn", "n_step": 3}),
        (("--cql-alpha", 4), {"type": "cql", "cql_alpha": 4, "n_step": 1}),
    ],
)
def test_an_algorithm_and_its_options_are_recorded(filled, tmp_path, options, expected):
    outcome = filled(*UPDATES, *options, "--run-dir", "new")
    assert outcome.code == 0, outcome.err
    assert "earned a reward" not in outcome.err
    assert expected.items() <= read_config(tmp_path / "new")["hyperparameters"].items()


def test_a_run_that_goes_on_says_where(filled):
    command = (*LEARN, "--updates", 3, "--run-dir", "run")
    again = filled(*command, "--json")
    assert again.json["updates"] == 0 and "trained so far: 3 of 3 updates\n" in again.err


def test_a_run_goes_on_with_its_own_data_after_the_store_has_grown(filled, tmp_path):
    before = read_config(tmp_path / "run")
    assert filled(*COLLECT[:4], 240, *COLLECT[5:]).code == 0
    longer = (*UPDATES, "--run-dir", "run")
    for expected, prepare in ((1, ()), (0, ENCODE)):  # New segments do not need to be encoded.
        assert not prepare or filled(*prepare).code == 0
        outcome = filled(*longer, "--json")
        assert outcome.code == 0, outcome.err
        assert outcome.json["updates"] == expected
        assert (
            "continues with the 4 segments" in outcome.err and "leaves out 2 newer" in outcome.err
        )
    assert read_config(tmp_path / "run")["segments"] == before["segments"]
    config = tmp_path / "run" / "config.json"
    lost = before["segments"][0]
    config.write_text(config.read_text().replace(lost, f"{lost[:-1]}{9 - int(lost[-1])}"))
    outcome = filled(*longer)
    assert outcome.code == 3 and "lacks 1 of the 4 segments" in outcome.error


def test_every_fusion_can_be_planned(filled, unchanged):
    with unchanged():
        for fusion in ("lin", "fix", "res", "dpa", "mean", "uniform", "single"):
            planned = filled(*WITHOUT_SIZE, "--fusion", fusion, "--dry-run")
            assert planned.code == 0 and f"; run runs/Breakout__{fusion}__1__" in planned.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--fusion cnn", "every model gives a vector"),
        ("--fusion lin --weight-entropy-coef 0.1", "--fusion lin learns none"),
        ("--fusion fix --context test_resnet_r160_in1k", "leave out --context"),
        ("--hidden 12,many", "--hidden: 'many' is not a whole number"),
        ("--temperature 0", "--temperature must be positive"),
        ("--frame-stack 5", "--frame-stack must be from 1 to 4"),
        ("--save-best --validation-fraction 0", "--save-best needs"),
    ],
)
def test_impossible_options_are_refused_in_one_line(filled, unchanged, options, message):
    with unchanged():
        outcome = filled(*WITHOUT_SIZE, *options.split(), "--run-dir", "new")
    assert outcome.code == 2 and message in outcome.error, outcome.err


def test_an_interrupted_run_without_a_named_folder_says_how_to_continue(filled, monkeypatch):
    begun = False

    def interrupt(folder, *_, **__):
        if begun:
            folder.mkdir(parents=True)
            (folder / "config.json").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "launch", interrupt)
    assert "the same command continues" in filled(*UPDATES).error
    begun = True
    outcome = filled(*UPDATES)
    assert outcome.code == 130
    assert "interrupted. Nothing committed is lost; 'wsa learn --resume runs/" in outcome.error
    assert "the same command continues" in filled(*UPDATES, "--run-dir", "named").error
