"""A user's own module is imported only if the user typed its name."""

import pytest

from wsa.store.common import user_code
from wsa.store.common.errors import ConflictError, MissingError


def test_a_name_is_a_module_and_an_attribute():
    assert all(map(user_code.is_name, ["a:b", "a.b:c", "_a:B1"]))
    for text in ("", "a", "a:", ":b", "a:b:c", "a/b:c", "a:b()", "1a:b", "a.:b"):
        assert not user_code.is_name(text), text


def test_a_class_is_loaded_once_its_name_is_typed(monkeypatch):
    monkeypatch.setattr(user_code, "_typed", set())
    name = "collections:OrderedDict"
    with pytest.raises(MissingError, match="--trust collections:OrderedDict") as refused:
        user_code.load_typed(name, dict, "--fusion", "run/config.json")
    assert refused.value.kind == "no-library" and "run/config.json" in str(refused.value)
    user_code.type_in([name, "no name"])
    assert user_code.load_typed(name, dict, "--fusion").__name__ == "OrderedDict"
    with pytest.raises(ConflictError, match="not a subclass of") as wrong:
        user_code.load_typed(name, list, "--fusion")
    assert wrong.value.kind == "user-code"
