"""Write docs/reference/python.md from the docstrings of what `import wsa` offers.

python docs/reference/make_python.py
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import wsa

GROUPS = {
    "Commands as functions": ("collect", "encode", "learn", "evaluate"),
    "Stores": ("open", "Store", "GameData", "Transitions", "Embeddings"),
    "Runs": ("load_run", "Run"),
    "Encoders": ("encoder", "ImageEncoder", "Input", "UserModel"),
    "Your own code": ("Fusion", "Policy"),
    "Errors": (
        "WsaError", "UsageError", "MissingError", "ConflictError", "DamagedError", "StorageError",
    ),
}  # fmt: skip
# `encode` and `learn` are packages that may be called: what is described is the function.
FUNCTIONS = {
    "encode": ("wsa.encode.commands.encode", "encode_store"),
    "learn": ("wsa.learn.api.commands", "learn"),
}


def page() -> str:
    """The page."""
    head = (
        "# Python API\n\n"
        "This page lists everything that `import wsa` offers. `docs/reference/make_python.py` makes it "
        "from the docstrings.\n"
        "Everything else in the packages may change from one version to the next. "
        "[Use wsa from Python](../howto/python.md) has examples.\n"
    )
    parts = [head]
    for title, names in GROUPS.items():
        parts.append(f"\n## {title}\n")
        for name in names:
            parts.extend(_described(f"wsa.{name}", _find(name)))
    return "".join(parts)


def _find(name: str) -> Any:
    if name in FUNCTIONS:
        module, function = FUNCTIONS[name]
        return getattr(__import__(module, fromlist=[function]), function)
    return getattr(wsa, name)


def _described(name: str, what: Any) -> Iterator[str]:
    """A function; or a class, and its methods."""
    if not inspect.isclass(what):
        yield f"\n### {name}\n\n```text\n{name}{_signature(what)}\n```\n\n{_text(what)}\n"
        return
    error = issubclass(what, Exception)
    made = "" if error or "Get one with" in (what.__doc__ or "") else _signature(what)
    shown = f"```text\n{name}{made}\n```\n\n" if made else ""
    yield f"\n### {name}\n\n{shown}{_text(what)}\n"
    if error:
        return
    for key, member in vars(what).items():
        if key.startswith("_") and key != "__call__":
            continue
        if isinstance(member, property):
            yield f"\n**`.{key}`** {_text(member)}\n"
        elif inspect.isfunction(member):
            called = "" if key == "__call__" else f".{key}"
            yield f"\n**`{called}{_signature(member)}`** {_text(member)}\n"


def _signature(what: Any) -> str:
    found = inspect.signature(what)
    own = [p for p in found.parameters.values() if p.name != "self"]
    short = found.replace(
        parameters=[p.replace(annotation=inspect.Parameter.empty) for p in own],
        return_annotation=inspect.Signature.empty,
    )
    return str(short)


def _text(what: Any) -> str:
    """A docstring as Markdown: sections as lists.

    Raises:
        ValueError: There is none.
    """
    if not what.__doc__:
        raise ValueError(f"{what!r} is public and has no docstring")
    lines: list[str] = []
    listing = False
    for line in inspect.cleandoc(what.__doc__).splitlines():
        if re.fullmatch(r"(Args|Returns|Raises|Attributes):", line):
            lines += [f"{line[:-1]}:", ""]
            listing = line != "Returns:"
        elif listing and (entry := re.fullmatch(r"    (\w[\w, ]*): (.*)", line)):
            lines.append(f"- `{entry[1]}`: {entry[2]}")
        elif listing and line.startswith("        "):
            lines[-1] += f" {line.strip()}"
        elif lines and lines[-1] == "" and line.startswith("    ") and "Returns:" in lines[-2:]:
            lines.append(line.strip())
        elif line.startswith("    ") and "Returns:" in lines[-4:]:
            lines[-1] += f" {line.strip()}"
        else:
            listing = listing and line == ""
            lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    Path(__file__).with_name("python.md").write_text(page())
