"""Run each frozen vision model once per distinct frame, and learn from the stored embeddings.

    import wsa

    wsa.collect("Pong", steps=10_000)                       # play, and keep what was seen
    wsa.encode(models=["vit"], game="Pong")                 # each frame through the model once
    run = wsa.learn("Pong", models=["vit"], updates=1_000)  # train on the embeddings
    wsa.evaluate(run["run"], episodes=10)

    store = wsa.open()                                      # arrays, datasets, encoders
    player = wsa.load_run(run["run"])                       # a network that acts

A name is imported when it is used, so `import wsa` costs next to nothing. `wsa.encode` and
`wsa.learn` are packages too.
"""

import importlib
from typing import TYPE_CHECKING, Any

from wsa.store.common.version import __version__

if TYPE_CHECKING:
    from wsa.encode.commands.encode import encode_store as encode
    from wsa.encode.models.custom import Input, UserModel
    from wsa.learn.api.commands import collect, evaluate, learn
    from wsa.learn.api.data import GameData
    from wsa.learn.api.datasets import Embeddings, Transitions
    from wsa.learn.api.images import ImageEncoder, encoder
    from wsa.learn.api.run import Run, load_run
    from wsa.learn.api.store import Store, open
    from wsa.learn.envs.policies import Policy
    from wsa.learn.fusion.base import Fusion
    from wsa.store.common.errors import (
        ConflictError,
        DamagedError,
        MissingError,
        StorageError,
        UsageError,
        WsaError,
    )

__all__ = [
    "ConflictError",
    "DamagedError",
    "Embeddings",
    "Fusion",
    "GameData",
    "ImageEncoder",
    "Input",
    "MissingError",
    "Policy",
    "Run",
    "StorageError",
    "Store",
    "Transitions",
    "UsageError",
    "UserModel",
    "WsaError",
    "__version__",
    "collect",
    "encode",
    "encoder",
    "evaluate",
    "learn",
    "load_run",
    "open",
]

# Where each name lives. `encode` and `learn` are packages that can also be called.
_PLACES = {
    **dict.fromkeys(("Input", "UserModel"), "wsa.encode.models.custom"),
    **dict.fromkeys(("collect", "evaluate"), "wsa.learn.api.commands"),
    **dict.fromkeys(("Embeddings", "Transitions"), "wsa.learn.api.datasets"),
    **dict.fromkeys(("ImageEncoder", "encoder"), "wsa.learn.api.images"),
    **dict.fromkeys(("Run", "load_run"), "wsa.learn.api.run"),
    "Fusion": "wsa.learn.fusion.base",
    "GameData": "wsa.learn.api.data",
    "Policy": "wsa.learn.envs.policies",
    **dict.fromkeys(("Store", "open"), "wsa.learn.api.store"),
    **dict.fromkeys((n for n in __all__ if n.endswith("Error")), "wsa.store.common.errors"),
}

if not TYPE_CHECKING:  # Type checkers see only the imports above.

    def __getattr__(name: str) -> Any:
        """Import a public name on first use."""
        if name in ("encode", "learn"):
            return importlib.import_module(f"wsa.{name}")
        if name not in _PLACES:
            raise AttributeError(f"module 'wsa' has no attribute {name!r}")
        return getattr(importlib.import_module(_PLACES[name]), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
