"""Numbers as people read them."""

import pytest

from wsa.store.common.terminal import number, numbers, plural, were


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (-0.0, "0"), (-21.0, "-21"), (9.5, "9.50"), (-20.44, "-20.4"), (412.5, "412"),
        (7242.4, "7,242"), (7242, "7,242"), (0.273, "0.27"), (-0.001, "0.00"),
    ],
)  # fmt: skip
def test_a_number_has_three_significant_digits_and_a_whole_one_no_decimals(value, text):
    assert number(value) == text


def test_numbers_that_belong_together_have_equally_many_decimals():
    assert numbers(8.25, 1.5, 15) == ["8.2", "1.5", "15.0"]
    assert numbers(340, 310, 380) == ["340", "310", "380"]
    assert numbers(0.27, 0, 1) == ["0.27", "0.00", "1.00"]
    assert numbers(1.5, -2.25, signed=True) == ["+1.50", "-2.25"]
    assert numbers() == []


def test_one_thing_is_singular():
    assert [plural(n, "pass") for n in (0, 1, 1234)] == ["0 passes", "1 pass", "1,234 passes"]
    assert [were(n, "object") for n in (1, 2)] == ["1 object was", "2 objects were"]
