"""Packages that may be called: `wsa.encode(...)` beside `wsa.encode.jobs`.

`encode` and `learn` are the names of rooms and of what users do. A room stays a package, and what
it is called with goes to one function, imported then.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


class CallablePackage(ModuleType):
    """A package; calling it calls the function that its `FUNCTION`, `module:name`, names."""

    FUNCTION: str

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Call the function."""
        module, _, name = self.FUNCTION.partition(":")
        return getattr(importlib.import_module(module), name)(*args, **options)


def make_callable(package: str) -> None:
    """Let a package, which is being imported and has a `FUNCTION`, be called."""
    sys.modules[package].__class__ = CallablePackage
