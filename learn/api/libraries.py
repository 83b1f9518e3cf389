"""Libraries that some of the Python API needs and wsa itself does not."""

from __future__ import annotations

import importlib
from typing import Any

from wsa.store.common.errors import MissingError


def require(module: str, package: str, what: str) -> Any:
    """Import a library.

    Args:
        module: What to import.
        package: What to install where it is missing.
        what: What needs it.

    Raises:
        MissingError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise MissingError(
            "no-library",
            f"{what} needs {package}, which is not installed. Install it: pip install {package}",
        ) from None
