"""Fewer probe frames: models are probed on 4 of 16 frames, and bases are fitted on 96 of 832.

Python imports this module when it starts with this folder on `PYTHONPATH`, which `tests/conftest.py`
sets. So the tests and every process that they start agree on a model's probe. Tests that ask for
`all_probe_frames` use the probe frames that wsa ships.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

NAME = "wsa.encode.registration.probe_frames"
PROBED, FITTED = 2, 12  # Games.


def shorten(module: Any) -> None:
    """Replace the functions of the module; `module.whole` keeps the real ones."""
    whole = {
        name: getattr(module, name) for name in ("load_frames", "PROBE_GAMES", "_single_frames")
    }
    games = whole["PROBE_GAMES"][:PROBED]

    @functools.cache
    def load() -> list[Any]:
        parts = whole["load_frames"]()
        one_a_height = {part.frames.shape[1]: part.game for part in parts}
        first = {*games, *one_a_height.values()}
        parts.sort(key=lambda part: part.game not in first)
        return sorted(parts[:FITTED], key=lambda part: part.game)

    @functools.cache
    def probe() -> Any:
        frames = {part.game: part.frames for part in load()}
        return module.np.concatenate([frames[game][4:6] for game in games])

    module.whole = whole
    module.load_frames = lambda: list(load())
    module.PROBE_GAMES, module._single_frames = games, probe


class _Finder:
    def find_spec(
        self, name: str, path: Any, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != NAME:
            return None
        sys.meta_path.remove(self)  # type: ignore[arg-type]
        spec = importlib.util.find_spec(name)
        assert spec and spec.loader
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            shorten(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if NAME not in sys.modules:
    sys.meta_path.insert(0, _Finder())  # type: ignore[arg-type]
