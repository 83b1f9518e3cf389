"""Output of commands: progress, events, tables, sizes, and logs."""

import dataclasses
import json
import logging

import pytest

from wsa.encode.commands.encode import describe_event
from wsa.encode.jobs.events import Started, WorkerUnfit
from wsa.store.common import terminal
from wsa.store.common.errors import MissingError


@pytest.fixture
def clock(monkeypatch):
    """A clock that only advances when a test says so."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def test_progress_measures_the_rate_since_the_first_update(clock, capsys):
    with terminal.Progress("train", "steps", 1_000) as progress:
        clock(30)  # Opening the data.
        progress.update(900)  # A resumed run starts here.
        assert capsys.readouterr().err == ""
        clock(20)
        progress.update(910)
        assert capsys.readouterr().err == "train: 910 of 1,000 steps, 0.5/s, 0:03:00 left\n"


def test_progress_that_ends_with_the_first_update_has_no_rate(clock, capsys):
    with terminal.Progress("read", "frames", 8) as progress:
        clock(2)
        progress.update(8)
    assert capsys.readouterr().err == "read: 8 of 8 frames\n"


def test_progress_prints_its_last_line_once(clock, capsys):
    with terminal.Progress("read", "frames", 8) as progress:
        progress.update(0)
        clock(20)
        progress.update(8)
    assert capsys.readouterr().err == "read: 8 of 8 frames, 0.4/s, 0:00:00 left\n"


def test_events_have_a_time(monkeypatch, capsys):
    monkeypatch.setattr("time.time", lambda: 1_700_000_000.12345)
    event = Started(1, 2, "cpu", "")
    terminal.say_event(event)
    written = json.loads(capsys.readouterr().err)
    assert written == {"event": "Started", "time": 1_700_000_000.123} | dataclasses.asdict(event)


def test_the_same_error_of_several_workers_is_described_once():
    described = {}
    weights = MissingError("no-weights", "There are no weights of vit.")
    library = MissingError("no-library", "There is no timm.")
    lines = [
        describe_event(WorkerUnfit(f"tcp://{i}", "here", error), described)
        for i, error in enumerate([weights, library, weights])
    ]
    assert str(weights) in lines[0] and str(library) in lines[1]
    assert lines[2] == "worker tcp://2 on here gets no segments. As tcp://0."
    itself = [MissingError("no-library", f"tcp://{i} lacks timm.") for i in (7, 8)]  # Its address.
    for i, error in zip((7, 8), itself, strict=True):
        lines.append(describe_event(WorkerUnfit(f"tcp://{i}", "here", error), described))
    assert lines[-1] == "worker tcp://8 on here gets no segments. As tcp://7."


def test_several_things_of_a_result_are_apart(capsys):
    terminal.result(False, {"encoders": [{"key": "a", "passes": 1}, {"key": "b", "passes": 2}]})
    blocks = capsys.readouterr().out.split("\n\n")
    assert [block.split()[-3:] for block in blocks] == [["a", "passes", "1"], ["b", "passes", "2"]]


def test_a_table_in_a_pipe_is_aligned_and_escaped_but_not_wrapped(capsys):
    rows = [["[b]a[/b]", 12_345, "x" * 300], [":smile:\x1b[31m", None, True]]
    terminal.table("models", ["name", "count", "note"], rows)
    title, head, rule, first, second = capsys.readouterr().out.splitlines()
    assert (title, head.split()) == ("models", ["name", "count", "note"])
    assert set(rule) == {"-", " "} and [len(dashes) for dashes in rule.split()][1:] == [7, 300]
    assert first.split() == ["[b]a[/b]", "12,345", "x" * 300]
    assert second.split() == [":smile:\\x1b[31m", "-", "yes"]
    assert head.index("count") + 5 == first.index("12,345") + 6 == second.index(" - ") + 2
    assert {line for line in (head, first, second) if line != line.rstrip()} == set()


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 bytes"), (1, "1 byte"), (999, "999 bytes"), (1.44e6, "1.4 MB")]
)
def test_sizes_are_rounded_with_a_unit(count, text):
    assert terminal.size(count) == text


def test_logs_are_shown_only_while_a_command_runs(capsys):
    log = logging.getLogger("wsa.store.objects.root")
    log.info("before the command")
    with terminal.show_log():
        log.info("store %s", "s3://lab\x1b[31m")
        log.warning("no games were played")
        log.debug("a detail")
    log.warning("after the command")
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["store s3://lab\\x1b[31m", "warning: no games were played"]
    assert not any("before" in line or "detail" in line for line in lines)
    assert logging.getLogger("wsa").handlers == []


def test_json_has_no_numbers_that_json_does_not_know(capsys):
    terminal.result(True, {"minutes": float("nan"), "runs": [{"share": float("inf"), "n": 1}]})
    assert json.loads(capsys.readouterr().out) == {
        "minutes": None,
        "runs": [{"share": None, "n": 1}],
    }
