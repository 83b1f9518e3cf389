"""P21: errors have a kind and an exit code, travel between processes, and print safely."""

import copy
import pickle
from typing import get_args

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


def test_each_class_has_an_exit_code_and_a_builtin_base_and_can_be_pickled():
    assert set(EXITS) == set(WsaError.__subclasses__())
    for error, code in EXITS.items():
        assert error.exit_code == code
        assert issubclass(error, BUILTINS.get(error, Exception))
        for kind in get_args(Kind):
            message = f"{kind}: something at /x/ü.\nDo that."
            raised = error(kind=kind, message=message)
            for back in (pickle.loads(pickle.dumps(raised)), copy.copy(raised)):  # noqa: S301
                assert type(back) is error
                assert (back.kind, str(back), back.exit_code) == (kind, message, code)


def test_messages_contain_no_control_characters():
    """A name in a foreign store could otherwise clear or recolor the user's terminal."""
    evil = "game \x1b[2J\x1b]0;title\x07 \x9b31m\rand\x00 more\nnext\tline é"
    assert str(WsaError("bad-record", evil)) == "game ?[2J?]0;title? ?31m?and? more\nnext\tline é"
