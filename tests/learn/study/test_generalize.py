"""Studies of variants: suites, the share of the advantage that a run retains, and shifts of embeddings."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from wsa.learn.envs import atari
from wsa.learn.envs.variants import parse_variant
from wsa.learn.study.games import PlayedGames
from wsa.learn.study.generalizing.retention import Retention
from wsa.learn.study.generalizing.shift import StateOutputs, cosine, shift
from wsa.learn.study.generalizing.suites import SUITES, variants_of


def specs(suite, game, protocol="classic"):
    return [v.spec for v in variants_of(suite, game, atari.protocol(game, protocol))]


def test_suites_have_the_variants_of_a_game():
    colorings = variants_of("authors", "Breakout", atari.protocol("Breakout", "classic"))
    assert len({v.spec for v in colorings}) == 25 and all(v.keeps_rules for v in colorings)
    (lazy,) = variants_of("authors", "Pong", atari.protocol("Pong", "classic"))
    assert lazy.spec == "ram:pong-lazy" and not lazy.keeps_rules
    assert specs("authors", "Seaquest") == []
    assert specs("modes", "Pong") == ["mode=1", "difficulty=1", "difficulty=2", "difficulty=3"]
    assert specs("modes", "Enduro") == []
    # The stickiness of the run is no variant.
    assert specs("sticky", "Pong") == ["sticky=0.25", "sticky=0.5"]
    assert specs("sticky", "Pong", "v5") == ["sticky=0", "sticky=0.5"]
    for suite in SUITES:
        assert "" not in specs(suite, "Breakout")
    assert not parse_variant("look:gray+sticky=0.25", "Pong").keeps_rules


def test_only_the_cartridges_switches_need_the_emulator(monkeypatch):
    def start(game):
        raise AssertionError("asked")

    protocol = atari.protocol("Breakout", "classic")
    monkeypatch.setattr(atari, "switches", start)
    for suite in set(SUITES) - {"modes"}:
        assert variants_of(suite, "Breakout", protocol)
    with pytest.raises(AssertionError, match="asked"):
        variants_of("modes", "Breakout", protocol)


def games(*returns):
    return PlayedGames(tuple(returns), 0, 0)


def test_the_retained_share_is_of_the_advantage_over_random_play():
    plain = games(10, 12, 14, 16, 18), games(2, 2, 2, 2, 2)
    retention = Retention(plain)
    assert retention.beats_random and retention.advantage.value == 12
    assert retention.share([plain]) == (1, 1, 1)  # Games are resampled in pairs.
    half = games(7, 8, 9, 10, 11), games(3, 3, 3, 3, 3)
    assert retention.share([half]) == pytest.approx((0.5, 0.5, 0.5))
    mixed: Any = retention.share([(games(11, 7, 10, 8, 9), half[1])])
    assert mixed and mixed.value == pytest.approx(0.5) and mixed.low < 0.45 and mixed.high > 0.55
    # A variant that is easier for the random policy too raises no share.
    easier = games(*(r + 5 for r in plain[0].returns)), games(7, 7, 7, 7, 7)
    assert retention.share([easier]) == pytest.approx((1, 1, 1))
    assert retention.change(easier[0]) == pytest.approx((5, 5, 5))
    both = retention.share([half, easier])
    assert both and both.value == pytest.approx(0.75)


def test_a_run_no_better_than_random_has_no_share():
    plain = games(1, 2, 3, 2, 1), games(2, 1, 2, 2, 2)
    retention = Retention(plain)
    assert not retention.beats_random and retention.share([plain]) is None
    assert retention.change(plain[0]) == (0, 0, 0)
    alone = Retention((games(9), games(1)))  # One game has no interval.
    assert not alone.beats_random and alone.advantage == (8, None, None)
    assert alone.change(games(7)) == (-2, None, None)


def test_shifts_of_embeddings_and_weights():
    one = np.array([[1, 0], [0, 2], [0, 0], [0, 0]], np.float32)
    other = np.array([[2, 0], [1, 0], [0, 0], [3, 0]], np.float32)
    np.testing.assert_allclose(cosine(one, other), [1, 0, 1, 0])
    actions: dict[str, Any] = {"actions": np.zeros((4, 1), np.int64)}
    weights = np.array([[0.5, 0.5], [0.2, 0.8], [0.5, 0.5], [1, 0]], np.float32)
    plain = StateOutputs(
        **actions, embeddings=[one, one], weights=weights, greedy=np.array([0, 1, 2, 0])
    )
    changed = StateOutputs(
        **actions, embeddings=[other, one], weights=weights[:, ::-1], greedy=np.array([0, 1, 0, 1])
    )
    moved = shift(plain, changed)
    assert (moved.states, moved.agreement) == (4, 0.5)
    assert moved.cosine == pytest.approx((0.5, 1))
    assert moved.before == pytest.approx((0.55, 0.45)) and moved.after == pytest.approx(
        (0.45, 0.55)
    )
    assert moved.moved == pytest.approx((0.4, 0.4))
    weightless = msgspec.structs.replace(moved, before=None, after=None, moved=None)
    unweighed = [StateOutputs(s.actions, s.embeddings, None, s.greedy) for s in (plain, changed)]
    assert shift(*unweighed) == weightless
