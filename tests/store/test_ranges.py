"""Options and records declare the ranges of their fields."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated

import msgspec
import pytest

from wsa.store.common.errors import UsageError
from wsa.store.common.ranges import COUNT, OPTIONAL_COUNT, POSITIVE, SHARE, Range, check_ranges


@dataclasses.dataclass(frozen=True)
class Parent:
    num_envs: Annotated[int, COUNT] = 1


@dataclasses.dataclass(frozen=True)
class Options(Parent):
    share: Annotated[float, SHARE] = 0.5
    epsilon: Annotated[float, Range(0, 1, below=True)] = 0.5
    rate: Annotated[float, POSITIVE] = 1.0
    port: Annotated[int, Range(0, 65535)] | None = None
    name: str = ""


class Record(msgspec.Struct):
    updates: Annotated[int, OPTIONAL_COUNT] = 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(num_envs=0), "--num-envs must be at least 1, not 0."),
        (Options(share=1.5), "--share must be from 0 to 1, not 1.5."),
        (Options(epsilon=1.0), "--epsilon must be from 0 to below 1, not 1.0."),
        (Options(rate=0.0), "--rate must be positive, not 0.0."),
        (Options(rate=math.inf), "--rate must be positive, not inf."),
        (Options(share=math.nan), "--share must be from 0 to 1, not nan."),
        (Options(port=1 << 16), "--port must be from 0 to 65535, not 65536."),
        (Record(-1), "--updates must be at least 0, not -1."),
        (Record(2**53 + 1), "--updates must be at most 9007199254740992, not 9007199254740993."),
        (Options(rate=1e308), "--rate must be at most 9007199254740992, not 1e+308."),
    ],
)
def test_a_value_outside_its_range_is_refused(options, message):
    with pytest.raises(UsageError) as refused:
        check_ranges(options)
    assert (refused.value.kind, str(refused.value)) == ("bad-option", message)


def test_values_inside_their_ranges_pass():
    for options in (Options(), Options(1, 0.0, 0.0, 1e-9, 0), Record()):
        check_ranges(options)


def test_a_range_reads_as_words():
    assert str(Range(2, above=True)) == "above 2"
    assert str(Range(1, 10**9)) == "from 1 to 1000000000"
