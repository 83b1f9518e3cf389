"""P21: errors have a kind and an exit code, travel between processes, and print safely."""

from __future__ import annotations

import ast
import copy
import pickle
from pathlib import Path
from typing import get_args

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


def test_each_class_has_an_exit_code_and_a_builtin_base_and_can_be_pickled():
    assert set(EXITS) == set(WsaError.__subclasses__())
    for error, code in EXITS.items():
        assert error.exit_code == code
        assert issubclass(error, BUILTINS.get(error, Exception))
        for kind in get_args(Kind):
            message = f"{kind}: something at /x/ü.\nDo that."
            raised = error(kind, message)
            for back in (pickle.loads(pickle.dumps(raised)), copy.copy(raised)):  # noqa: S301
                assert type(back) is error
                assert (back.kind, str(back), back.exit_code) == (kind, message, code)


def kinds_in(file: Path) -> set[tuple[str, str]]:
    """Class and kind of every error that a module raises."""
    return {
        (call.func.id, str(call.args[0].value))
        for call in ast.walk(ast.parse(file.read_text()))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id in {error.__name__ for error in EXITS}
        and isinstance(call.args[0], ast.Constant)
    }


def test_every_kind_that_the_store_raises_is_asserted_in_a_test():
    kinds = {kind for file in ROOM.rglob("*.py") for _, kind in kinds_in(file)}
    assert kinds <= set(get_args(Kind)) and len(kinds) >= 14
    tests = "".join(file.read_text() for file in TESTS.glob("test_*.py") if file != Path(__file__))
    assert {kind for kind in kinds if f'"{kind}"' not in tests} == set()


def test_each_kind_belongs_to_one_class():
    owners: dict[str, set[str]] = {}
    for file in ROOM.rglob("*.py"):
        for error, kind in kinds_in(file):
            owners.setdefault(kind, set()).add(error)
    assert [kind for kind, classes in owners.items() if len(classes) > 1] == []


def test_messages_contain_no_control_characters():
    """A name in a foreign store could otherwise clear or recolor the user's terminal."""
    evil = "game \x1b[2J\x1b]0;title\x07 \x9b31m\rand\x00 more\nnext\tline é"
    assert str(WsaError("bad-record", evil)) == "game ?[2J?]0;title? ?31m?and? more\nnext\tline é"
