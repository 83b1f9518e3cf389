"""P5, P6, P18: after any operations and faults, a store equals its model or names what is damaged."""

import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from wsa.store.backends.local import LocalBackend
from wsa.store.common import names
from wsa.store.exchange import sync
from wsa.store.format import records
from wsa.store.maintenance import sweep, verify
from wsa.store.maintenance.repair import repair
from wsa.store.objects import snapshot, writer
from wsa.store.objects.snapshot import take_snapshot
from wsa.store.testing import MemoryBackend, StoreMachine, Work, state_machine


class InFolder(StoreMachine):
    """The state machine on a disk."""

    def start(self):
        self.folder = tempfile.mkdtemp(prefix="wsa-machine-")
        return LocalBackend(self.folder)

    def clock(self):
        return time.time()

    def move_clock(self, by_s):
        for path in Path(self.folder).rglob("*"):
            found = path.stat()
            os.utime(path, (found.st_atime, found.st_mtime - by_s))

    def teardown(self):
        shutil.rmtree(self.folder)


def run_machine(machine, examples, steps):
    run_state_machine_as_test(
        machine, settings=settings(max_examples=examples, stateful_step_count=steps)
    )


def test_a_store_in_memory():
    run_machine(StoreMachine, 6, 30)


def test_a_store_in_a_folder():
    run_machine(InFolder, 2, 20)


def test_an_object_can_be_damaged_repaired_and_copied_repeatedly():
    there, here = MemoryBackend("memory://there"), MemoryBackend()
    Work("model").commit(there)
    for junk in (b"longer than the file was, by far" * 3, b"short", b"", b"short"):
        source, target = take_snapshot(there), take_snapshot(here)
        assert sync.copy(source, here, sync.plan_sync(source, target)).objects
        (path,) = [e.path for e in here.list("models") if e.path.endswith("spec.json")]
        here.files[path] = (junk, here.clock())
        repair(here, verify.verify(here).damage)
        assert not take_snapshot(here).commits
    kept = [here.get(entry.path) for entry in here.list("damaged")]
    assert kept.count(b"short") == 2 and kept.count(b"") == 1


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("machine", [StoreMachine, InFolder])
def test_long_runs(machine):
    run_machine(machine, 20, 500)


def _unchecked(self, commit, file):
    """Like `Snapshot.read_file`, without comparing the checksum."""
    return self.backend.get(f"{commit.folder}/{file.name}")


def _record_first(backend, commit, files):
    """Like `writer._commit`, in the wrong order."""
    won = backend.put_new(names.commit_path(commit.id), records.write_commit(commit))
    writer._put_all(backend, {f"{commit.folder}/{name}": data for name, data in files.items()})
    return won


MISTAKES = {
    "files are not compared": (snapshot.Snapshot, "read_file", _unchecked),
    "the record comes first": (writer, "_commit", _record_first),
    "files of a record that is late are removed": (
        writer,
        "_lost",
        lambda backend, commit, over, real=writer._lost: real(backend, commit, True),
    ),
    "every writer wins": (
        writer,
        "publish_record",
        lambda *of, real=writer.publish_record: bool(real(*of)) or True,
    ),
    "verify looks at records only": (verify, "_check_object", lambda *of: []),
    "sweep removes young files": (
        state_machine,
        "sweep",
        lambda backend, grace_s, dry_run, now, real=state_machine.sweep: real(
            backend, 0, dry_run, now
        ),
    ),
    "sweep reads no record": (sweep, "read_record", lambda backend, path: None),
}


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_machine_finds_a_mistake(mistake, monkeypatch):
    """Each of these mistakes in the store makes the state machine fail."""
    monkeypatch.setattr(*MISTAKES[mistake])
    phases = [Phase.generate]  # Without shrinking.
    with pytest.raises(Exception):  # noqa: B017  Whichever it meets first.
        run_state_machine_as_test(
            StoreMachine,
            settings=settings(
                max_examples=1000, stateful_step_count=50, database=None, phases=phases
            ),
        )
