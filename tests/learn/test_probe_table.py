"""The verdict of a probe: what is judged, by what it is ranked, and what is said of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

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
from wsa.learn.probe.samples import Moments
from wsa.learn.probe.splits import group, make_splits

EPISODES, STEPS = 20, 30


@pytest.fixture
def moments() -> Moments:
    """A ball and a paddle that wander, the second half of the episodes further to the right.

    The ball is on the screen at two steps of three; at the others its place is a lie.
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
    return Moments(
        [], [], [], target, {**dict.fromkeys(target, always), "ball x": shown, "ball y": shown},
        better, groups, make_splits(groups, 5),
    )  # fmt: skip


def verdict(moments: Moments, f1: bool = False, **rows: NDArray[Any]) -> Table:
    variables, _ = usable_variables(moments, 0.6)
    how: dict[str, Any] = {"ordered": True, "places": True, "state": True, "f1": f1}
    asked = Plan({}, variables, untrained=0, frames=False, seed=1, **how)
    return compare(moments, asked, [(n, "", "model", r) for n, r in rows.items()])


def known(moments: Moments, *names: str, noise: int = 4) -> NDArray[np.float32]:
    """An embedding that has some variables, and noise beside them."""
    generator = np.random.default_rng(1)
    told = [moments.target[name] / 30 for name in names]
    unlike = generator.normal(size=(len(moments), noise))
    return np.column_stack([*told, unlike]).astype(np.float32)


def test_the_true_state_comes_first_by_places_and_hits(moments: Moments) -> None:
    half = known(moments, "ball x", "paddle x")
    table = verdict(moments, one=known(moments, "ball y"), half=half)
    state, best, worst, floor = table.ranked()
    assert [line.name for line in (state, best, worst, floor)] == [
        TRUE_STATE,
        "half",
        "one",
        FLOOR,
    ]
    for way in ("both", "transfer", "narrow"):
        r2, hit = table.means[TRUE_STATE, way]
        assert r2.value == pytest.approx(1) and hit.value == pytest.approx(1)
    assert table.ranked_by == "r2"
    assert all(one.ranks for one in table.calibrations.values())
    assert table.counted == ["ball x", "ball y", "paddle x"]  # The score is no place.
    r2, hit = table.means["half", "both"]
    assert 0.6 < r2.value < 0.7 and 0.6 < hit.value < 0.8
    assert r2.low <= r2.value <= r2.high and r2.low < r2.high


def test_a_measure_that_fails_the_true_state_is_not_ranked_by(moments: Moments) -> None:
    """A code with a direction for each value wins by F1, as an untrained network does."""
    places = [np.eye(101)[moments.target[name]] for name in ("paddle x", "score")]
    codes = np.concatenate([*places, known(moments, noise=1)], axis=1)
    del moments.target["ball x"], moments.target["ball y"]
    table = verdict(moments, f1=True, codes=codes)
    failed = table.calibrations["f1"]
    assert failed.best_name == "codes" and failed.true_state < failed.best_other
    assert not failed.ranks and table.calibrations["r2"].ranks and table.ranked_by == "r2"
    assert any(
        "F1 is not used for ranking: the true state has" in note
        for note in tables.notes(table, hits=True)
    )


def made(name: str, kind: Any, r2: float, hit: float) -> Line:
    """A line with these scores of one variable, of two episodes of four moments each."""
    sums = np.tile([4.0, 0.0, 4.0, 4 * (1 - r2), 4 * hit], (2, 1, 1))
    return Line(name, "", kind, 1, 1.0, {"both": sums}, {})


def ranking(*state: float) -> Table:
    lines = [
        made(TRUE_STATE, "state", *state),
        made(FLOOR, "floor", 0, 0),
        made("worse", "model", 0.5, 0.5),
        made("better", "model", 0.8, 0.75),
    ]
    return Table(lines, ["ball x"], ["ball x"], np.zeros(2, np.bool_), 1)


def test_without_a_measure_to_trust_nothing_is_ranked() -> None:
    def order(table: Table) -> list[str]:
        return [line.name for line in table.ranked()]

    assert ranking(1, 1).ranked_by == "r2"
    assert order(ranking(1, 1)) == [TRUE_STATE, "better", "worse", FLOOR]
    by_hits = ranking(0.7, 1)
    assert by_hits.ranked_by == "hit"
    assert "R2 is not used for ranking: the true state has 0.70, better 0.80" in tables.notes(
        by_hits, hits=True
    )
    assert any(
        note.startswith("only random play is probed") for note in tables.notes(by_hits, hits=True)
    )
    by_nothing = ranking(0.7, 0.6)
    assert by_nothing.ranked_by == "" and order(by_nothing) == [
        TRUE_STATE,
        "worse",
        "better",
        FLOOR,
    ]
    said = tables.notes(by_nothing, hits=True)
    assert "no measure puts the true state first, so the models are not ranked" in said
    assert not any(note.startswith("Ranked by") for note in said)
    assert tables.as_json(by_nothing)["calibration"]["hit"]["ranks"] is False


def test_places_are_judged_only_while_the_object_is_on_the_screen(moments: Moments) -> None:
    knows = known(moments, "ball x", noise=1)
    hidden = ~moments.shown["ball x"]
    knows[hidden] = np.random.default_rng(2).normal(size=knows[hidden].shape)
    table = verdict(moments, knows=knows)
    line = table.lines[-1]
    found = line.scores("both")
    assert found and found.r2[table.ordered.index("ball x")] > 0.99
    judged_moments = line.sums["both"][:, table.ordered.index("ball x"), 0].sum()
    assert judged_moments == moments.shown["ball x"].sum()
    assert line.sums["both"][:, table.ordered.index("paddle x"), 0].sum() == len(moments)


def test_what_is_hardly_on_the_screen_or_hardly_varies_is_left_out(moments: Moments) -> None:
    moments.shown["ball x"] = np.arange(len(moments)) < 20
    moments.target["score"][:] = 3
    kept, left_out = usable_variables(moments, 0.6)
    assert kept == ["ball y", "paddle x"]
    assert left_out == {
        "ball x": "on the screen at only 20 of 600 steps",
        "score": "hardly varies (entropy 0.00)",
    }


def test_better_play_is_judged_by_probes_of_random_play(moments: Moments) -> None:
    """What means something else in better play is found out, if it is learned from there."""
    place = moments.target["paddle x"] / 30
    turned = np.where(moments.better, -place, place)
    told = np.column_stack([turned, moments.better])
    alike = np.column_stack([place, moments.better])
    table = verdict(moments, told=told, alike=alike)
    column = table.ordered.index("paddle x")
    transferred = {line.name: line.scores("transfer") for line in table.lines}
    assert transferred["alike"].r2[column] > 0.99  # type: ignore[union-attr]
    assert transferred["told"].r2[column] < 0  # type: ignore[union-attr]
    assert table.means["told", "transfer"][0].value == 0  # A mean counts nothing below nothing.
    judged_there = table.lines[0].sums["transfer"][..., 0].any(axis=1)
    assert (judged_there == moments.groups.better).all()


def test_all_have_as_many_axes_in_one_column(moments: Moments) -> None:
    """A place below the 64 leading axes is found by all axes, and not by these."""
    generator = np.random.default_rng(3)
    loud = 10 * generator.normal(size=(len(moments), 64))
    quiet = known(moments, "paddle x", noise=0)
    table = verdict(moments, quiet=np.column_stack([loud, quiet]), alone=quiet)
    column = table.ordered.index("paddle x")
    found = {(line.name, way): line.scores(way) for line in table.lines for way in line.sums}
    assert found["quiet", "both"].r2[column] > 0.9  # type: ignore[union-attr]
    assert found["quiet", "narrow"].r2[column] < 0.1  # type: ignore[union-attr]
    assert found["alone", "narrow"].r2[column] > 0.99  # type: ignore[union-attr]


def test_what_no_encoder_reads_is_listed_and_left_out_of_means(moments: Moments) -> None:
    table = verdict(
        moments, some=known(moments, "ball x", "paddle x"), less=known(moments, "ball x")
    )
    assert table.unread == ["ball y"]
    assert table.means["some", "both"][0].value > 0.99
    assert table.means["less", "both"][0].value == pytest.approx(0.5, abs=0.05)
    assert any(
        note.startswith("left out of means") and "ball y" in note
        for note in tables.notes(table, hits=True)
    )
    nothing = verdict(moments, noise=known(moments))
    assert nothing.unread == nothing.counted and not nothing.means
    assert "| -" in tables.means_table(nothing, hits=True)


def test_the_share_of_places_that_were_seen_before(moments: Moments) -> None:
    moments.target["paddle x"][:] = np.where(
        moments.better, np.arange(len(moments)), moments.target["paddle x"] % 3
    )
    seen = seen_before(moments, ["ball x", "ball y", "paddle x"])
    assert seen["paddle"] == {"random": 1.0, "better": 0.0}
    assert 0 < seen["ball"]["random"] < 0.2  # Of 10,000 places.


def test_seeds_of_one_network_are_a_line_with_the_least_and_the_most(moments: Moments) -> None:
    variables, _ = usable_variables(moments, 0.6)
    asked = Plan({}, variables, True, True, True, False, 0, False, 1)
    rows = [known(moments, *told) for told in (("ball x",), ("ball x", "paddle x"), ("ball x",))]
    table = compare(
        moments,
        asked,
        [(f"sr untrained, seed {i}", "", "untrained", own) for i, own in enumerate(rows)],
    )
    (line,) = [r for r in tables.means_table(table, hits=False).splitlines() if "untrained" in r]
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells[0] == "sr untrained, 3 seeds"
    assert cells[2] == "0.67 [0.50, 1.00]"  # Of ball x and paddle x: ball y is read by none.
    assert len(tables.as_json(table)["models"]) == 5
    assert len({row[0] for row in tables.csv_rows(table)}) == 5


def test_intervals_are_of_episodes() -> None:
    """Of few episodes that differ they are wide, of many narrow; of episodes alike there is none."""
    generator = np.random.default_rng(0)
    widths = []
    for count in (4, 64):
        hits = generator.integers(0, 11, size=count)
        sums = np.stack([np.tile([10.0, 0, 10, 5, hit], (1, 1)) for hit in hits])
        pair = scores.mean(sums, [0], np.zeros(count, np.bool_), 1)
        assert pair and pair[1].value == pytest.approx(hits.mean() / 10)
        assert pair[0].low == pair[0].value == pair[0].high == 0.5
        widths.append(pair[1].high - pair[1].low)
    assert widths[0] > 2 * widths[1] > 0
