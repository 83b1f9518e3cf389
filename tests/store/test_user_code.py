"""Code of users' own is imported where its name was typed, and nowhere else."""

from __future__ import annotations

import pytest

from wsa.store.common import user_code
from wsa.store.common.errors import ConflictError, MissingError


@pytest.mark.parametrize("text", ["a:b", "a.b:c", "_a:B1"])
def test_names(text):
    assert user_code.is_name(text)


@pytest.mark.parametrize("text", ["", "a", "a:", ":b", "a:b:c", "a/b:c", "a:b()", "1a:b", "a.:b"])
def test_no_names(text):
    assert not user_code.is_name(text)


def test_a_class_is_loaded_once_its_name_is_typed(monkeypatch):
    monkeypatch.setattr(user_code, "_typed", set())
    name = "collections:OrderedDict"
    with pytest.raises(MissingError, match="--trust collections:OrderedDict") as refused:
        user_code.load_typed(name, dict, "--fusion", "run/config.json")
    assert refused.value.kind == "no-library" and "run/config.json" in str(refused.value)
    user_code.type_in([name, "no name"])
    assert user_code.load_typed(name, dict, "--fusion").__name__ == "OrderedDict"
    with pytest.raises(ConflictError, match="no subclass of") as wrong:
        user_code.load_typed(name, list, "--fusion")
    assert wrong.value.kind == "user-code"
