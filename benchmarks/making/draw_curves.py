"""Draw the learning curves of benchmarks/results/online-curves.csv as a PNG.

    python -m benchmarks.making.draw_curves docs/pictures/pong.png

Each point is the mean raw return of the training games, of all seeds, that ended in 20,000 steps.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np

from wsa.learn.training import charts

RESULTS = Path(__file__).parents[1] / "results/online-curves.csv"
STRETCH = 20_000
METHODS = {
    ("wsa", "palette", "8"): "WSA on palette (three seeds)",
    ("wsa", "palette+objects", "8"): "WSA on palette and objects",
    ("wsa", "sr+vos", "8"): "WSA on sr and vos",
    ("nature", "", "8"): "pixels (NatureCNN)",
}


def line(style: int, method: tuple[str, str, str], episodes: list[dict[str, str]]) -> charts.Line:
    """Mean return in each stretch of a method's run."""
    own = [e for e in episodes if (e["fusion"], e["models"], e["num_envs"]) == method]
    stretch = np.array([int(e["step"]) // STRETCH for e in own])
    returns = np.array([float(e["episodic_return"]) for e in own])
    stretches = np.unique(stretch)
    means = np.array([returns[stretch == i].mean() for i in stretches])
    return charts.Line(METHODS[method], (stretches + 0.5) * STRETCH, means, style)


def main() -> None:
    """Write the picture to the path on the command line."""
    with RESULTS.open() as file:
        episodes = list(csv.DictReader(file))
    lines = [line(style, method, episodes) for style, method in enumerate(METHODS)]
    Path(sys.argv[1]).write_bytes(
        charts.draw("Pong, PPO", "agent steps", "raw return of training games", lines)
    )


if __name__ == "__main__":
    main()
