"""Command options as keyword arguments: `wsa.learn(game="Pong", updates=100)`.

A keyword is the name of a flag, in whichever group of options the flag is. It sets a field of the
dataclass that defines the command line. So a function takes what its command takes, with the same
checks.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import msgspec

from wsa.store.common.errors import UsageError

O = TypeVar("O")


def fill(options: O, given: Mapping[str, Any], function: str, hidden: Collection[str] = ()) -> O:
    """Return options with the given ones set.

    Args:
        options: A dataclass or struct of defaults. A field that is one of these is a group.
        given: Values by flag name, such as `fusion_size` for `--fusion-size`. A sequence may replace
            comma-separated words, and a dict may replace pairs.
        hidden: Options that only the command has, such as `json`.

    Raises:
        UsageError: If an option does not exist, or a value has the wrong type.
    """
    known = [name for name in _names(options) if name not in hidden]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"Did you mean {near[0]}?" if near else f"It has {', '.join(sorted(known))}."
            raise UsageError(f"{function}() has no option {name!r}. {hint}")
    return _filled(options, given, function)


def _parsed(parse: Callable[[list[str]], Any], word: str, where: str) -> Any:
    try:
        return parse([word])
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"{where}: {error}.") from None


def as_flags(given: Mapping[str, Any]) -> list[str]:
    """Return keyword arguments as command-line words, for code that runs before options exist."""
    words = []
    for name, value in given.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words.append(f"--{flag}={_joined(value)}")
    return words


def _filled(options: O, given: Mapping[str, Any], function: str) -> O:
    changed: dict[str, Any] = {}
    for field, flag, hint in _fields(options):
        value = getattr(options, field)
        if _is_group(value):
            filled = _filled(value, given, function)
            if filled is not value:
                changed[field] = filled
        elif flag in given:
            changed[field] = _converted(given[flag], hint, f"{function}({flag}=...)")
    if not changed:
        return options
    if isinstance(options, msgspec.Struct):
        return msgspec.structs.replace(options, **changed)
    made: O = dataclasses.replace(options, **changed)  # type: ignore[type-var]
    return made


def _names(options: Any) -> Iterator[str]:
    """Yield the names of all flags, including those in groups."""
    for field, flag, _ in _fields(options):
        value = getattr(options, field)
        if _is_group(value):
            yield from _names(value)
        else:
            yield flag


def _is_group(value: Any) -> bool:
    return isinstance(value, msgspec.Struct) or dataclasses.is_dataclass(value)


def _fields(options: Any) -> Iterator[tuple[str, str, Any]]:
    """Yield (field, flag name, type) of every field that a flag can set."""
    from tyro.conf import Fixed

    for field, hint in typing.get_type_hints(type(options), include_extras=True).items():
        if typing.get_origin(hint) is typing.ClassVar:
            continue
        metadata = getattr(hint, "__metadata__", ())
        if Fixed in metadata:
            continue
        named = [name for part in metadata if (name := getattr(part, "name", None))]
        yield field, (named[0] if named else field).replace("-", "_"), hint


def _converted(value: Any, hint: Any, where: str) -> Any:
    """Convert a value to the type of its option."""
    bare = _without_annotations(hint)
    parse = next((part.instance_from_str for part in getattr(hint, "__metadata__", ())
                  if hasattr(part, "instance_from_str")), None)  # fmt: skip
    if typing.get_origin(bare) is tuple:
        if isinstance(value, Mapping):
            value = tuple(f"{key}={of}" for key, of in value.items())
        elif isinstance(value, str) and parse:
            value = _parsed(parse, value, where)
        elif isinstance(value, (int, float, os.PathLike)):
            value = (value,)
        if isinstance(value, Iterable):
            # As on the command line: split a word at its commas, and correct the spelling of a game.
            value = [
                part
                for one in value
                for part in (_parsed(parse, one, where) if parse and _is_word(one) else (one,))
            ]
    elif isinstance(value, os.PathLike):
        value = os.fspath(value)
    elif hasattr(value, "item"):  # A numpy scalar.
        value = value.item()
    if parse and typing.get_origin(bare) is not tuple and isinstance(value, str):
        value = _parsed(parse, value, where)
    try:
        return msgspec.convert(value, bare)
    except msgspec.ValidationError as error:
        choices = typing.get_args(bare) if typing.get_origin(bare) is typing.Literal else ()
        why = f"choose from {', '.join(map(str, choices))}" if choices else error
        raise UsageError(f"{where} cannot be {value!r}: {why}.") from None


def _without_annotations(hint: Any) -> Any:
    """Return a type without its command-line annotations."""
    if typing.get_origin(hint) is typing.Annotated:
        return _without_annotations(hint.__origin__)
    if typing.get_origin(hint) in (typing.Union, type(int | str)):
        parts = [_without_annotations(part) for part in typing.get_args(hint)]
        return typing.Union[tuple(parts)]  # noqa: UP007  As many as there are.
    return hint


def _is_word(value: Any) -> bool:
    """Whether a value is comma-separated words. A pair is not: its file name may have commas."""
    return isinstance(value, str) and "=" not in value


def _joined(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return str(value)
