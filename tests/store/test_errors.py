from __future__ import annotations

import ast
import copy
import pickle
from pathlib import Path
from typing import get_args

import pytest

from wsa.store.common import errors
from wsa.store.common.errors import (
    ConflictError,
    DamagedError,
    Kind,
    MissingError,
    StorageError,
    UsageError,
    WsaError,
)

EXITS = {UsageError: 2, MissingError: 3, ConflictError: 4, DamagedError: 5, StorageError: 6}
BUILTINS = {UsageError: ValueError, MissingError: LookupError, StorageError: OSError}
ROOM = Path(errors.__file__).parents[1]
TESTS = Path(__file__).parent


@pytest.mark.parametrize("kind", get_args(Kind))
@pytest.mark.parametrize("error", EXITS)
def test_errors_travel_whole_between_processes(error, kind):
    message = f"{kind}: something at /x/ü.\nDo that."
    made = error(kind, message)
    for back in (pickle.loads(pickle.dumps(made)), copy.copy(made)):  # noqa: S301
        assert type(back) is error
        assert (back.kind, str(back), back.exit_code) == (kind, message, EXITS[error])


def test_each_class_has_its_exit_code_and_the_builtin_a_caller_expects():
    assert set(EXITS) == set(WsaError.__subclasses__())
    for error, code in EXITS.items():
        assert error.exit_code == code
        assert issubclass(error, BUILTINS.get(error, Exception))


def raised(file: Path) -> set[tuple[str, str]]:
    """Class and kind of every error that a module makes."""
    return {
        (call.func.id, str(call.args[0].value))
        for call in ast.walk(ast.parse(file.read_text()))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id in {error.__name__ for error in EXITS}
        and isinstance(call.args[0], ast.Constant)
    }


def test_every_kind_the_store_raises_is_asserted_in_a_test():
    kinds = {kind for file in ROOM.rglob("*.py") for _, kind in raised(file)}
    assert kinds <= set(get_args(Kind)) and len(kinds) >= 14
    tests = "".join(file.read_text() for file in TESTS.glob("test_*.py") if file != Path(__file__))
    assert {kind for kind in kinds if f'"{kind}"' not in tests} == set()


def test_a_kind_belongs_to_one_class():
    owners: dict[str, set[str]] = {}
    for file in ROOM.rglob("*.py"):
        for error, kind in raised(file):
            owners.setdefault(kind, set()).add(error)
    assert {kind: found for kind, found in owners.items() if len(found) > 1} == {}


def test_no_message_speaks_to_a_terminal():
    """A name in a store may be anybody's: one that clears the screen, or another that paints it."""
    evil = "game \x1b[2J\x1b]0;title\x07 \x9b31m\rand\x00 more\nnext\tline é"
    assert str(WsaError("bad-record", evil)) == "game ?[2J?]0;title? ?31m?and? more\nnext\tline é"
