"""`wsa study`: run one of the paper's studies."""

from __future__ import annotations

from typing import Any

from wsa.learn.configs.study import (
    AttendOptions,
    CombineOptions,
    DuringOptions,
    GeneralizeOptions,
    ScaleOptions,
)
from wsa.store.common.errors import UsageError


def study(o: Any) -> int:
    """`wsa study`."""
    match o:
        case DuringOptions():
            from wsa.learn.study.scaling.during import during

            return during(o)
        case CombineOptions():
            from wsa.learn.study.combine import combine

            return combine(o)
        case ScaleOptions():
            from wsa.learn.study.scaling.scale import scale

            return scale(o)
        case GeneralizeOptions():
            from wsa.learn.study.generalizing.generalize import generalize

            return generalize(o)
        case AttendOptions():
            from wsa.learn.study.attend import attend

            return attend(o)
    raise UsageError("name a study. 'wsa study --help' lists them.")
