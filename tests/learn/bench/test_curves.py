"""Learning curves of a bench: averages of episodes, lines of methods, and the picture."""

import runpy
import sys

import cv2
import numpy as np
import pytest

from wsa.learn.bench.plot import Curve, averages, png
from wsa.learn.bench.plot import lines as make_lines
from wsa.learn.training import charts


def make_curve(method, slope):
    steps = np.arange(1, 601, dtype=np.float64)
    return Curve(method, steps, slope * steps)


def test_episodes_are_averaged_over_equal_stretches():
    means = averages(make_curve("wsa", 2.0), 1200.0)
    assert means[:29] == pytest.approx(np.arange(29) * 40 + 19, abs=3)
    assert np.isnan(means[31:]).all()  # Another run played twice as far.
    single = averages(Curve("wsa", np.array([7.0]), np.array([-3.0])), 7.0)
    assert single[-1] == -3 and np.isnan(single[:-1]).all()


def test_a_method_has_one_style_and_a_mean():
    first, second, mean, other = make_lines(
        [make_curve("wsa", 1.0), make_curve("mean", 3.0), make_curve("wsa", 0.0)]
    )
    assert [line.label for line in (first, second, mean, other)] == ["", "", "wsa (2)", "mean (1)"]
    assert [line.pale for line in (first, second, mean, other)] == [True, True, False, False]
    assert first.style == second.style == mean.style != other.style
    assert mean.x == pytest.approx(np.arange(5, 600, 10))
    assert mean.y == pytest.approx((np.asarray(first.y) + np.asarray(second.y)) / 2)


def test_a_mean_covers_the_steps_of_every_run():
    short = Curve("wsa", np.arange(1.0, 300.0), np.ones(299))
    mean = make_lines([make_curve("wsa", 1.0), short])[-1]
    assert np.max(mean.x) <= 300 and len(np.asarray(mean.x)) == 30


@pytest.mark.parametrize(
    "methods",
    [["wsa"], pytest.param([f"method {i}" for i in range(30)], marks=pytest.mark.slow)],
)
def test_the_picture_has_the_color_of_every_method(methods):
    data = png("Pong", [make_curve(method, slope) for slope, method in enumerate(methods)])
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    for color in charts.COLORS[: len(methods)]:
        red, green, blue = bytes.fromhex(color[1:])
        assert (pixels == (blue, green, red)).all(axis=-1).any(), color


def test_a_single_episode_is_a_point():
    data = png("Pong", [Curve("wsa", np.array([7.0]), np.array([-3.0]))])
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    inside = pixels[100:400, 200:900]  # Without the legend.
    blue = bytes.fromhex(charts.COLORS[0][1:])[::-1]
    assert (inside == tuple(blue)).all(axis=-1).any()


@pytest.mark.parametrize("lines", [[], [charts.Line("loss", [3], [0.5], 0)]])
def test_a_logarithmic_chart_may_have_no_lines_or_one_point(lines):
    picture = charts.draw("Losses", "steps", "loss", lines, logarithmic=True)
    assert picture.startswith(b"\x89PNG")


def test_charts_import_matplotlib_late_and_never_pyplot(monkeypatch):
    """`pyplot` has global state, and matplotlib is slow to import."""
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    charts.draw("", "", "", [])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    runpy.run_path(charts.__file__)
