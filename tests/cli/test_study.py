"""`wsa study` as a user meets it: refused options, games played once, and studies that continue."""

import contextlib
import itertools
import shutil

import pytest
from command_kit import ALIAS as RESNET
from command_kit import LEARN as KIT_LEARN
from command_kit import OTHER_ALIAS as VIT
from command_kit import read_csv, read_json, run_all

from wsa.learn.bench import run_cell
from wsa.learn.runs.config import read_config
from wsa.learn.study import combine_plan, interventions
from wsa.learn.study.games import Games
from wsa.learn.study.generalizing import suites

LEARN = (*KIT_LEARN[3:], "--log-frequency", 1)
PLAY = ("--episodes", 2, "--epsilon", 0.5, "--eval-num-envs", 1)
COMBINE = ("study", "combine", "--games", "Breakout", "--models", f"{RESNET},{VIT}", "--seeds", 1,
           "--updates", 2, *LEARN, *PLAY, "--study-dir", "st")  # fmt: skip


@pytest.fixture(scope="module")
def trained(two_models, tmp_path_factory):
    """A run on the store of two models, and its evaluation."""
    folder = tmp_path_factory.mktemp("trained")
    learn = ("learn", "--game", "Breakout", "--updates", 4, *LEARN, "--run-dir", "run")
    evaluate = ("eval", "run", "--episodes", 2, "--num-envs", 1, "--epsilon", 0.5)
    run_all(folder, learn, evaluate, store=two_models)
    return folder / "run"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("sclae",), 2, "Did you mean scale?"),
        ((), 2, "wsa study: name a study"),
        (("scale",), 2, "wsa study: name the folders of one or more trained runs"),
        (("attend", "run", "nowhere"), 3, "is not the folder of a run"),
        (("generalize", "run", "--suite", "looks"), 2, "look"),
        (("generalize", "run", "--episodes", 0), 2, "wsa study: --episodes must be at least 1"),
        (("combine", "--models", RESNET), 2, "wsa study: name at least two models to combine"),
        (("combine", "--models", f"{RESNET},oops", "--games", "Breakout"), 2, "oops"),
        (("scale", "run", "--after", "played", "--episodes", 0), 2, "must be at least 1"),
        (("scale", "run", "--episodes", 5), 2, "--episodes has no effect: --after cached plays no"),
        (("scale", "run", "--eval-seed", 5), 2, "--eval-seed has no effect: --after cached plays"),
        (("scale", "run", "--engine", "torch"), 2, "--after cached runs no model. Leave it out."),
        (("scale", "run", "--after", "played", "--states", 5), 2, "--states has no effect: it is"),
        (("scale", "--during", "--models", RESNET), 2, "wsa study: --during: name at least two"),
        (("scale", "--during", "--online", "--algo", "ppo", "--models", "a,b"), 2, "--online"),
    ],
)
def test_an_impossible_study_is_refused_at_once(ready, trained, tmp_path, arguments, code, message):
    outcome = ready("study", *(trained if a == "run" else a for a in arguments))
    assert outcome.code == code and message in outcome.error, outcome.err
    assert "Traceback" not in outcome.err and not (tmp_path / "study").exists()


@pytest.mark.parametrize("study", ["attend", "scale"])
def test_a_run_with_one_model_is_refused(filled, study):
    outcome = filled("study", study, "run")
    assert outcome.code == 2 and "is the run's only model" in outcome.error


def test_sets_of_models_are_played_once(ready, trained, tmp_path, monkeypatch, unchanged):
    command = ("study", "scale", trained, "--after", "played", *PLAY, "--study-dir", "st")
    dry = ready(*command, "--dry-run", "--json").json
    assert dry == {"runs": 1, "sets_left": 3, "games_left": 6}
    assert not (tmp_path / "st").exists()
    found = ready(*command, "--json").json
    (run,) = found["runs"]
    assert list(run["sets"]) == [RESNET, VIT, f"{RESNET}+{VIT}"]
    whole, chance = run["sets"][f"{RESNET}+{VIT}"][0], run["random"][0]
    assert sum(run["shapley"].values()) == pytest.approx(whole - chance)
    games = read_csv(tmp_path / "st" / "scale-played.csv")
    assert {int(r["parameters"]) for r in games} == {run["parameters"]}
    passes = {r["present"]: int(r["passes"]) for r in games}
    # Two models pass twice as often at most; one alone is the only one that runs.
    assert 0 < passes[RESNET] <= 24 and 0 < passes[VIT] <= 24 and passes[""] == 0
    # Nothing is played again, and no model is opened for it.
    monkeypatch.setattr("wsa.learn.study.trained_runs.open_player", None)
    with unchanged():
        assert ready(*command, "--json").json == found
    assert ready(*command, "--dry-run", "--json").json["sets_left"] == 0
    # The run itself has no more games than its own evaluation.
    assert len(read_csv(trained / "eval.csv")) == 4


def test_a_study_finds_a_store_that_has_moved(ready, trained, tmp_path):
    moved = shutil.copytree(trained, tmp_path / "moved")
    config = moved / "config.json"
    store = read_config(trained).store
    config.write_text(config.read_text().replace(store, store + "-before"))
    for command in (("scale", moved, "--after", "cached", "--states", 64),
                    ("generalize", moved, "--suite", "look", "--dry-run")):  # fmt: skip
        outcome = ready("study", *command, "--study-dir", "st")
        assert outcome.code == 0, outcome.err
        assert f"{store}-before is not there; using {store}" in outcome.err


@contextlib.contextmanager
def interrupting_the_third_play():
    """Press Ctrl-C when a study plays its games for the third time."""
    play, calls = Games.play, itertools.count(1)

    def play_or_interrupt(self, *arguments, **details):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return play(self, *arguments, **details)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Games, "play", play_or_interrupt)
        yield


@pytest.mark.slow
def test_interrupted_interventions_continue(ready, trained, tmp_path):
    command = ("study", "attend", trained, *PLAY, "--study-dir", "st")
    with interrupting_the_third_play():
        assert ready(*command).code == 130
    assert ready(*command, "--dry-run", "--json").json["conditions_left"] == 2
    outcome = ready(*command)
    assert outcome.code == 0, outcome.err
    assert "Does the attention matter?" in outcome.out and "weights uniform" in outcome.out
    st = tmp_path / "st"
    assert {r["condition"] for r in read_csv(st / "attend-games.csv")} == set(interventions.KINDS)
    assert [r["model"] for r in read_csv(st / "attend.csv")] == [RESNET, VIT]
    assert all(int(r["parameters"]) > 0 for r in read_csv(st / "attend.csv"))
    shares = [float(r["mean_weight"]) for r in read_csv(st / "attend.csv")]
    assert sum(shares) == pytest.approx(1, abs=1e-5)
    # Games of the run as it is are those that --after played has of the whole.
    dry = ready("study", "scale", trained, "--after", "played", *PLAY, "--study-dir", "st",
                "--dry-run", "--json")  # fmt: skip
    assert dry.json["sets_left"] == 2
    # Without games, the report has the weights only.
    assert "No interventions were played." in ready(*command[:3], "--episodes", 0).out


DURING = ("study", "scale", "--during", "--games", "Breakout", "--models", f"{RESNET},{VIT}",
          "--seeds", 1, "--updates", 2, *LEARN, *PLAY, "--study-dir", "st")  # fmt: skip


def test_a_study_of_changes_is_planned(ready, tmp_path):
    planned = ready(*DURING, "--dry-run", "--json").json
    assert planned == {"runs": 10, "left": 10, "updates_left": 7 * 2 + 3 * 4, "games_left": 28}
    assert not (tmp_path / "st").exists()


@pytest.mark.slow  # Ten runs, each evaluated, and four changes.
def test_models_are_added_and_dropped_during_training(ready, tmp_path, unchanged):
    outcome = ready(*DURING)
    assert outcome.code == 0, outcome.err
    table = read_csv(tmp_path / "st" / "scale-during.csv")
    assert len(table) == 10
    changed = [r["stage"] == "2" and r["way"] != "control" for r in table]
    assert [bool(r["return_after_change"]) for r in table] == changed
    with unchanged():
        assert ready(*DURING).out == outcome.out


@pytest.mark.slow
def test_ways_of_combining_are_trained_and_compared(ready, tmp_path, monkeypatch, unchanged):
    monkeypatch.setattr(combine_plan, "PAPER", ("wsa", "lin", "cnn"))
    monkeypatch.setattr(combine_plan, "CONTROLS", ())
    planned = ready(*COMBINE, "--dry-run", "--json").json
    assert (planned["runs"], planned["left"], planned["games_left"]) == (2, 2, 4)
    assert planned["minutes_training"] > 0 and planned["minutes_playing"] > 0
    assert all(row["parameters"] > 0 for row in planned["grid"])
    assert "convolves maps" in planned["left_out"]["Breakout, cnn"]
    assert "equals uniform" in planned["left_out"]["mean"]
    assert not (tmp_path / "st").exists()
    evaluate = run_cell.evaluate_run

    def fail_for_lin(folder, *arguments, **details):
        if "lin" in folder.name:
            raise MemoryError
        return evaluate(folder, *arguments, **details)

    with monkeypatch.context() as patch:
        patch.setattr(run_cell, "evaluate_run", fail_for_lin)
        outcome = ready(*COMBINE)
    assert outcome.code == 6 and "1 of 2 runs failed" in outcome.err
    st = tmp_path / "st"
    assert [r["method"] for r in read_csv(st / "combine.csv")] == ["wsa"]
    assert "not enough memory" in outcome.out and "Breakout, lin" in (st / "index.html").read_text()
    outcome = ready(*COMBINE)
    assert outcome.code == 0, outcome.err
    assert len(read_csv(st / "combine.csv")) == 2 and "Runs that failed" not in outcome.out
    planned = ready(*COMBINE, "--dry-run", "--json").json
    counts = {row["method"]: row["parameters"] for row in planned["grid"]}
    counted = {r["method"]: int(r["parameters"]) for r in read_csv(st / "combine.csv")}
    assert counted == counts and planned["left"] == 0
    with unchanged():
        assert ready(*COMBINE).code == 0


@pytest.mark.slow
def test_a_run_is_evaluated_on_changed_games(ready, trained, tmp_path, monkeypatch, unchanged):
    # The first of them changes nothing.
    monkeypatch.setattr(suites, "_LOOK", ("look:dim=1", "look:invert"))
    command = ("study", "generalize", trained, "--suite", "look", *PLAY, "--states", 20,
           "--study-dir", "st")  # fmt: skip
    dry = ready(*command, "--dry-run", "--json").json
    assert dry.pop("minutes") > 0
    assert not (tmp_path / "st").exists()
    (grid,) = dry.pop("grid")
    assert grid["variants"] == 2
    # A random policy does not look.
    assert dry == {"runs": 1, "games_left": 6, "random_games_left": 2, "states_left": 60}
    with interrupting_the_third_play():
        assert ready(*command).code == 130
    assert ready(*command, "--dry-run", "--json").json["games_left"] == 2
    # A run that cannot be opened is named, and the rest is there.
    broken = tmp_path / "broken"
    shutil.copytree(trained, broken)
    for path in (broken / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:-40])
    outcome = ready(*command[:2], broken, *command[2:], "--json")
    assert outcome.code == 5 and "failed: broken" in outcome.err.replace("./", "")
    found = read_json(outcome.out)
    assert found["failed"][0]["run"].endswith("broken")
    (run,) = found["runs"]
    same = run["variants"][0]
    assert same["return_mean"] == run["return"][0] and same["change"] == 0
    shifts = {(s["variant"], s["model"]): s for s in run["shifts"]}
    for model in (RESNET, VIT):
        alike, other = shifts["look:dim=1", model], shifts["look:invert", model]
        assert alike["cosine"] == pytest.approx(1) and alike["weight_moved"] == 0
        assert alike["action_agreement"] == 1 and other["cosine"] < 0.99
        assert other["weight_before"] == alike["weight_after"] and other["weight_moved"] > 0
    # Every game with its pair: the run and the random policy, as it is and in both variants.
    games = read_csv(tmp_path / "st" / "generalize.csv")
    assert len(games) == 2 * 2 * 3 and {g["policy"] for g in games} == {"run", "random"}
    page = (tmp_path / "st" / "index.html").read_text()
    assert "Runs that failed" in page and "How the fusion responds" in page
    # Nothing is played again, and no model is opened for it.
    monkeypatch.setattr("wsa.learn.study.trained_runs.open_player", None)
    outcome = ready(*command, "--json")
    assert read_json(outcome.out) == {"runs": found["runs"], "failed": []}
    with unchanged():
        assert ready(*command).code == 0
