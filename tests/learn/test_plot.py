from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsa.learn.bench import plot
from wsa.learn.bench.plot import COLOURS, Curve, averages, draw, png


def rising(method: str, by: float) -> Curve:
    steps = np.arange(1, 601, dtype=np.float64)
    return Curve(method, steps, by * steps)


def test_episodes_are_averaged_in_even_stretches() -> None:
    found = averages(rising("wsa", 2.0), 1200.0)
    assert found[:29] == pytest.approx(np.arange(29) * 40 + 19, abs=3)
    assert np.isnan(found[31:]).all()  # It played half as far as another.
    single = averages(Curve("wsa", np.array([7.0]), np.array([-3.0])), 7.0)
    assert single[-1] == -3 and np.isnan(single[:-1]).all()


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e7))
def test_ticks_are_round_and_few(low: float, span: float) -> None:
    found = plot.ticks(low, low + span)
    assert 2 <= len(found) <= 6
    slack = 1e-6 * (span + abs(low))
    assert found.min() >= low - slack and found.max() <= low + span + slack
    step = found[1] - found[0]
    assert np.diff(found) == pytest.approx(step, rel=1e-3)
    digits = step / 10 ** np.floor(np.log10(step) + 1e-6)
    assert min(abs(digits - m) for m in (1, 2, 5, 10)) < 0.02


def test_ticks_of_a_run() -> None:
    assert [*plot.ticks(0, 399_160)] == [0, 100_000, 200_000, 300_000]
    assert [*plot.ticks(-21, 2)] == [-20, -15, -10, -5, 0]


def places(picture: plot.Picture, colour: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    above = picture[: plot.HEIGHT - plot.BOTTOM]
    y, x = np.nonzero((above == np.array(colour)).all(axis=2))
    return y, x


def test_curves_stand_where_their_numbers_are() -> None:
    picture = draw("Pong", [rising("wsa lite0", 1.0), rising("mean lite0", 0.5)])
    high, low = (places(picture, colour) for colour in COLOURS[:2])
    # Both begin near the bottom left; one ends at the top right, the other half as high.
    for (y, x), top in ((high, plot.TOP), (low, (plot.TOP + plot.HEIGHT - plot.BOTTOM) / 2)):
        assert abs(x.min() - plot.LEFT) < 12 and abs(x.max() - (plot.WIDTH - plot.RIGHT)) < 12
        assert abs(y.min() - top) < 12 and y[x.argmax()] < y[x.argmin()]
    assert len(picture) == plot.HEIGHT + 2 * plot.LEGEND


def test_a_method_has_one_colour_and_its_mean() -> None:
    picture = draw("Pong", [rising("wsa", 1.0), rising("wsa", 0.0)])
    y, _ = places(picture, COLOURS[0])
    assert abs(y.min() - (plot.TOP + plot.HEIGHT - plot.BOTTOM) / 2) < 12
    assert not len(places(picture, COLOURS[1])[0])


def test_a_flat_curve_and_the_file() -> None:
    data = png("Pong", [rising("wsa", 0.0)])
    assert data.startswith(b"\x89PNG")
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    np.testing.assert_array_equal(decoded[..., ::-1], draw("Pong", [rising("wsa", 0.0)]))
