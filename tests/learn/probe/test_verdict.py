"""The verdict of a probe: scores, the measure that ranks the models, and the notes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from wsa.learn.probe import scores, tables
from wsa.learn.probe.probe import (
    FLOOR,
    TRUE_STATE,
    Line,
    Plan,
    Table,
    compare,
    seen_before,
    usable_variables,
)
from wsa.learn.probe.samples import SampledSteps
from wsa.learn.probe.splits import group, make_splits

EPISODES, STEPS = 20, 18


@pytest.fixture
def sampled():
    """A ball and a paddle at random places, further to the right in the second half of the episodes.

    The ball is on the screen at two steps of three; at the others its place is noise.
    """
    generator = np.random.default_rng(0)
    episode = np.repeat(np.arange(EPISODES), STEPS)
    count, better = len(episode), episode >= EPISODES // 2
    ball = generator.integers(100, size=(count, 2)) + 40 * better[:, None]
    paddle = generator.integers(100, size=count)
    shown = np.arange(count) % 3 > 0
    ball[~shown] = generator.integers(100, size=((~shown).sum(), 2))
    target = {"ball x": ball[:, 0], "ball y": ball[:, 1], "paddle x": paddle, "score": paddle // 10}
    always = np.ones(count, np.bool_)
    groups = group([(e,) for e in episode.tolist()], [0] * count, better)
    return SampledSteps(
        [], [], [], target, {**dict.fromkeys(target, always), "ball x": shown, "ball y": shown},
        better, groups, make_splits(groups, 5),
    )  # fmt: skip


def compare_models(sampled, f1=False, **embeddings):
    return compare(
        sampled, plan(sampled, f1), [(n, "", "model", rows) for n, rows in embeddings.items()]
    )


def plan(sampled, f1=False):
    variables, _ = usable_variables(sampled, 0.6)
    return Plan({}, variables, True, True, f1, 0, False, 1)


def embed(sampled, *names, noise=4):
    """Embeddings that contain some variables, and noise."""
    variables = [sampled.target[name] / 30 for name in names]
    noises = np.random.default_rng(1).normal(size=(len(sampled), noise))
    return np.column_stack([*variables, noises]).astype(np.float32)


def r2_of(table, name, variable, way="both"):
    (line,) = [line for line in table.lines if line.name == name]
    scores = line.scores(way)
    assert scores
    return float(scores.r2[table.ordered.index(variable)])


def has_note(table, start):
    return any(note.startswith(start) for note in tables.notes(table, hits=True))


def test_the_true_state_comes_first(sampled):
    half = embed(sampled, "ball x", "paddle x")
    table = compare_models(sampled, one=embed(sampled, "ball y"), half=half)
    state, best, worst, floor = table.ranked()
    names = [line.name for line in (state, best, worst, floor)]
    assert names == [TRUE_STATE, "half", "one", FLOOR]
    for way in ("both", "transfer", "narrow"):
        r2, hit = table.means[TRUE_STATE, way]
        assert r2.value == pytest.approx(1) and hit.value == pytest.approx(1)
    assert table.ranked_by == "r2"
    assert all(one.ranks for one in table.calibrations.values())
    assert table.counted == ["ball x", "ball y", "paddle x"]  # The score is no place.
    r2: Any
    r2, hit = table.means["half", "both"]
    assert 0.6 < r2.value < 0.7 and 0.6 < hit.value < 0.8
    assert r2.low <= r2.value <= r2.high and r2.low < r2.high


def test_a_measure_that_ranks_a_model_above_the_true_state_is_not_used(sampled):
    """One-hot codes of the values win by F1, as an untrained network does."""
    sampled.target["paddle x"] //= 3
    places = [np.eye(34)[sampled.target[name]] for name in ("paddle x", "score")]
    codes = np.concatenate([*places, embed(sampled, noise=1)], axis=1)
    del sampled.target["ball x"], sampled.target["ball y"]
    table = compare_models(sampled, f1=True, codes=codes)
    failed = table.calibrations["f1"]
    assert failed.best_name == "codes" and failed.true_state < failed.best_other
    assert not failed.ranks and table.calibrations["r2"].ranks and table.ranked_by == "r2"
    assert has_note(table, "F1 is not used for ranking: the true state has")


def test_f1_is_of_the_first_split_that_tests_a_step(sampled):
    first, *others = sampled.splits
    nothing = dataclasses.replace(first, test=first.test[:0])
    seen = dataclasses.replace(sampled, splits=[nothing, *others])
    rest = dataclasses.replace(sampled, splits=others)
    one = embed(sampled, "score")
    f1 = [[line.f1 for line in compare_models(s, f1=True, one=one).lines] for s in (seen, rest)]
    assert f1[0] == f1[1] and all(f1[0])


def make_line(name, kind, r2, hit):
    """A line with these scores of one variable, from two episodes of four steps each."""
    sums = np.tile([4.0, 0.0, 4.0, 4 * (1 - r2), 4 * hit], (2, 1, 1))
    return Line(name, "", kind, 1, 1.0, {"both": sums}, {})


def make_table(*state):
    lines = [
        make_line(TRUE_STATE, "state", *state),
        make_line(FLOOR, "floor", 0, 0),
        make_line("worse", "model", 0.5, 0.5),
        make_line("better", "model", 0.8, 0.75),
    ]
    return Table(lines, ["ball x"], ["ball x"], np.zeros(2, np.bool_), 1)


def test_models_are_ranked_by_a_measure_that_puts_the_true_state_first():
    def order(table):
        return [line.name for line in table.ranked()]

    by_r2 = make_table(1, 1)
    assert by_r2.ranked_by == "r2"
    assert order(by_r2) == [TRUE_STATE, "better", "worse", FLOOR]
    by_hits = make_table(0.7, 1)
    assert by_hits.ranked_by == "hit"
    assert has_note(by_hits, "R2 is not used for ranking: the true state has 0.70, better 0.80")
    assert has_note(by_hits, "only random play is probed")
    unranked = make_table(0.7, 0.6)
    assert unranked.ranked_by == ""
    assert order(unranked) == [TRUE_STATE, "worse", "better", FLOOR]
    assert has_note(unranked, "no measure puts the true state first, so the models are not ranked")
    assert not has_note(unranked, "Ranked by")
    assert tables.as_json(unranked)["calibration"]["hit"]["ranks"] is False


def test_places_are_tested_only_while_the_object_is_on_the_screen(sampled):
    rows = embed(sampled, "ball x", noise=1)
    hidden = ~sampled.shown["ball x"]
    rows[hidden] = np.random.default_rng(2).normal(size=rows[hidden].shape)
    table = compare_models(sampled, known=rows)
    assert r2_of(table, "known", "ball x") > 0.99
    tested = table.lines[-1].sums["both"][..., 0].sum(axis=0)
    assert tested[table.ordered.index("ball x")] == sampled.shown["ball x"].sum()
    assert tested[table.ordered.index("paddle x")] == len(sampled)


def test_variables_that_are_rarely_shown_or_hardly_vary_are_left_out(sampled):
    sampled.shown["ball x"] = np.arange(len(sampled)) < 20
    sampled.target["score"][:] = 3
    kept, left_out = usable_variables(sampled, 0.6)
    assert kept == ["ball y", "paddle x"]
    assert left_out == {
        "ball x": "on the screen at only 20 of 360 steps",
        "score": "hardly varies (entropy 0.00)",
    }


def test_probes_of_random_play_are_tested_on_better_play(sampled):
    """Numbers that mean the opposite in better play do not transfer."""
    place = sampled.target["paddle x"] / 30
    flipped = np.column_stack([np.where(sampled.better, -place, place), sampled.better])
    same = np.column_stack([place, sampled.better])
    table = compare_models(sampled, flipped=flipped, same=same)
    assert r2_of(table, "same", "paddle x", "transfer") > 0.99
    assert r2_of(table, "flipped", "paddle x", "transfer") < 0
    assert table.means["flipped", "transfer"][0].value == 0  # Means count scores below 0 as 0.
    tested = table.lines[0].sums["transfer"][..., 0].any(axis=1)
    assert (tested == sampled.groups.better).all()


def test_the_narrow_score_uses_the_64_leading_axes(sampled):
    """They do not contain a place whose axis is quieter."""
    generator = np.random.default_rng(3)
    loud = 10 * generator.normal(size=(len(sampled), 64))
    quiet = embed(sampled, "paddle x", noise=0)
    table = compare_models(sampled, quiet=np.column_stack([loud, quiet]), alone=quiet)
    assert r2_of(table, "quiet", "paddle x") > 0.9
    assert r2_of(table, "quiet", "paddle x", "narrow") < 0.1
    assert r2_of(table, "alone", "paddle x", "narrow") > 0.99


def test_variables_that_no_encoder_knows_are_left_out_of_means(sampled):
    table = compare_models(
        sampled, some=embed(sampled, "ball x", "paddle x"), less=embed(sampled, "ball x")
    )
    assert table.unread == ["ball y"]
    assert table.means["some", "both"][0].value > 0.99
    assert table.means["less", "both"][0].value == pytest.approx(0.5, abs=0.05)
    (note,) = [n for n in tables.notes(table, hits=True) if n.startswith("left out of means")]
    assert "ball y" in note
    noise = compare_models(sampled, noise=embed(sampled))
    assert noise.unread == noise.counted and not noise.means
    assert "| -" in tables.means_table(noise, hits=True)


def test_the_share_of_places_that_occur_in_training(sampled):
    sampled.target["paddle x"][:] = np.where(
        sampled.better, np.arange(len(sampled)), sampled.target["paddle x"] % 3
    )
    seen = seen_before(sampled, ["ball x", "ball y", "paddle x"])
    assert seen["paddle"] == {"random": 1.0, "better": 0.0}
    assert 0 < seen["ball"]["random"] < 0.2  # Of 10,000 places.


def test_seeds_of_one_network_share_a_line_with_their_range(sampled):
    known = (("ball x",), ("ball x", "paddle x"), ("ball x",))
    seeds: list[Any] = [
        (f"sr untrained, seed {i}", "", "untrained", embed(sampled, *names))
        for i, names in enumerate(known)
    ]
    table = compare(sampled, plan(sampled), seeds)
    (line,) = [r for r in tables.means_table(table, hits=False).splitlines() if "untrained" in r]
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells[0] == "sr untrained, 3 seeds"
    assert cells[2] == "0.67 [0.50, 1.00]"  # Of ball x and paddle x: none knows ball y.
    assert len(tables.as_json(table)["models"]) == 5
    assert len({row[0] for row in tables.csv_rows(table)}) == 5


def test_intervals_resample_episodes():
    """They are wide for few episodes, narrow for many, and empty for equal episodes."""
    generator = np.random.default_rng(0)
    widths = []
    for count in (4, 64):
        hits = generator.integers(0, 11, size=count)
        sums = np.stack([np.tile([10.0, 0, 10, 5, hit], (1, 1)) for hit in hits])
        pair: Any = scores.mean(sums, [0], np.zeros(count, np.bool_), 1)
        assert pair and pair[1].value == pytest.approx(hits.mean() / 10)
        assert pair[0].low == pair[0].value == pair[0].high == 0.5
        widths.append(pair[1].high - pair[1].low)
    assert widths[0] > 2 * widths[1] > 0
