"""`wsa study`: one of the paper's studies, by name."""

from __future__ import annotations

from typing import Any

from wsa.learn.configs.study import ScaleOptions
from wsa.store.common.errors import UsageError


def study(o: Any) -> int:
    """`wsa study`."""
    match o:
        case ScaleOptions():
            from wsa.learn.study.scale import scale

            return scale(o)
    raise UsageError("bad-option", "wsa study: name a study. 'wsa study --help' lists them.")
