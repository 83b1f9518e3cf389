from __future__ import annotations

import subprocess
import sys

import cv2
import numpy as np
import pytest

from wsa.learn.bench.plot import Curve, averages, lines, png
from wsa.learn.training import charts


def rising(method: str, by: float) -> Curve:
    steps = np.arange(1, 601, dtype=np.float64)
    return Curve(method, steps, by * steps)


def test_episodes_are_averaged_in_even_stretches() -> None:
    found = averages(rising("wsa", 2.0), 1200.0)
    assert found[:29] == pytest.approx(np.arange(29) * 40 + 19, abs=3)
    assert np.isnan(found[31:]).all()  # It played half as far as another.
    single = averages(Curve("wsa", np.array([7.0]), np.array([-3.0])), 7.0)
    assert single[-1] == -3 and np.isnan(single[:-1]).all()


def test_a_method_has_one_style_and_its_mean() -> None:
    first, second, mean, other = lines(
        [rising("wsa", 1.0), rising("mean", 3.0), rising("wsa", 0.0)]
    )
    assert [line.label for line in (first, second, mean, other)] == ["", "", "wsa (2)", "mean (1)"]
    assert [line.pale for line in (first, second, mean, other)] == [True, True, False, False]
    assert first.style == second.style == mean.style != other.style
    assert mean.x == pytest.approx(np.arange(5, 600, 10))
    assert mean.y == pytest.approx((np.asarray(first.y) + np.asarray(second.y)) / 2)


def test_a_mean_stands_where_every_run_has_an_episode() -> None:
    short = Curve("wsa", np.arange(1.0, 300.0), np.ones(299))
    mean = lines([rising("wsa", 1.0), short])[-1]
    assert np.max(mean.x) <= 300 and len(np.asarray(mean.x)) == 30


@pytest.mark.parametrize(
    "methods",
    [["wsa"], pytest.param([f"method {i}" for i in range(30)], marks=pytest.mark.slow)],
)
def test_the_file_is_a_picture_with_every_color(methods: list[str]) -> None:
    data = png("Pong", [rising(method, by) for by, method in enumerate(methods)])
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    shown = set(map(tuple, decoded[..., ::-1].reshape(-1, 3).tolist()))
    expected = charts.COLORS[: len(methods)]
    assert {tuple(bytes.fromhex(color[1:])) for color in expected} <= shown


@pytest.mark.parametrize("logarithmic", [False, True])
def test_a_chart_without_lines_or_with_one_point(logarithmic: bool) -> None:
    for some in ([], [charts.Line("loss", [3], [0.5], 0)]):
        picture = charts.draw("Losses", "steps", "loss", some, logarithmic=logarithmic)
        assert picture.startswith(b"\x89PNG")


def test_drawing_leaves_no_global_state() -> None:
    code = (
        "import sys; from wsa.learn.training import charts; assert 'matplotlib' not in sys.modules;"
        "charts.draw('', '', '', []); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
