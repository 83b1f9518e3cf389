"""Packages that can be called: `wsa.encode(...)` besides `wsa.encode.jobs`.

`encode` and `learn` name both packages and functions for users. Calling the package imports one
function and calls that.
"""

from __future__ import annotations

import pkgutil
import sys
from types import ModuleType
from typing import Any


class CallablePackage(ModuleType):
    """A package that, when called, calls the function that its `FUNCTION` (`module:name`) names."""

    FUNCTION: str

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Call the function."""
        return pkgutil.resolve_name(self.FUNCTION)(*args, **options)


def make_callable(package: str) -> None:
    """Make a package callable while it is being imported; it must define `FUNCTION`."""
    sys.modules[package].__class__ = CallablePackage
