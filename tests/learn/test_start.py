"""What a run is where a user does not say."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from wsa.learn.runs.config import RunConfig
from wsa.learn.runs.setup.models import by_default

AE, SR, OKK = (f"{alias}-0123456789ab" for alias in ("ae", "sr", "okk"))
OTHER = "ae-ffffffffffff"


@pytest.mark.parametrize(
    ("keys", "fusion", "asked", "fused", "context"),
    [
        ([AE, OKK, SR], "wsa", "", [OKK, SR], AE),
        ([AE, OKK, SR], "uniform", "", [OKK, SR], "mean"),  # It has no use for a context.
        ([OKK, SR], "wsa", "", [OKK, SR], "mean"),
        ([AE], "wsa", "", [AE], "mean"),
        ([AE, OTHER, SR], "wsa", "", [AE, OTHER, SR], "mean"),  # Which of the two, nobody said.
        ([AE, OKK, SR], "wsa", "mean", [AE, OKK, SR], "mean"),
        ([AE, OKK, SR], "wsa", SR, [AE, OKK], SR),
        ([SR], "wsa", SR, [SR], SR),
    ],
)
def test_the_autoencoder_gives_the_context_as_in_the_paper(
    keys: list[str], fusion: str, asked: str, fused: list[str], context: str
) -> None:
    assert by_default(keys, fusion, asked) == (fused, context)


def test_a_model_that_gives_the_context_alone_looks_at_the_newest_frame() -> None:
    def shapes(models: list[str], context: str) -> tuple[tuple[int, ...], ...]:
        network = SimpleNamespace(frame_stack=4)
        config = SimpleNamespace(
            models=models, inputs=[SR, OKK, AE], context=context, network=network
        )
        run: Any = config
        return RunConfig.inputs_of(run, (4, 1, 1), [(512,), (21, 21, 4), (16, 16, 64)]).shapes

    assert shapes([SR, OKK], AE) == ((1, 512), (4, 21, 21, 4), (1, 16, 16, 64))
    assert shapes([SR, OKK, AE], AE) == ((1, 512), (4, 21, 21, 4), (4, 16, 16, 64))
