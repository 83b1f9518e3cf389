"""Optional libraries that parts of the Python API need."""

from __future__ import annotations

import importlib
from typing import Any

from wsa.store.common.errors import MissingError


def require(module: str, package: str, what: str) -> Any:
    """Import an optional library.

    Args:
        module: Module to import.
        package: Package to install if the module is missing.
        what: Name of the function that needs it, for the message.

    Raises:
        MissingError: If the library is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise MissingError(
            "no-library",
            f"{what} needs {package}, which is not installed. Install it: pip install {package}",
        ) from None
