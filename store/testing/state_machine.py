"""Property-based test of a store: random operations and faults, checked after every step.

`StoreMachine` is a hypothesis `RuleBasedStateMachine`. Its rules commit objects with faults in the
backend, make two writers race, corrupt files, change the clock, sweep, repair and merge. The machine
remembers each object as it was committed. It checks that the store shows exactly the committed
objects, that each of them reads as it was committed or raises `DamagedError` because its bytes were
changed, and that `verify` names exactly the changed ones.

    TestStore = StoreMachine.TestCase

runs it in memory. To run it on another backend, override `start`, `clock` and `move_clock`. This
needs the extra `testing`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from wsa.store.backends.base import Backend
from wsa.store.common import hashing, names
from wsa.store.common.errors import DamagedError, StorageError
from wsa.store.exchange import sync
from wsa.store.format.records import Meta, dependencies, read_commit, record_path
from wsa.store.maintenance.repair import repair
from wsa.store.maintenance.sweep import KEPT, objects_named, sweep
from wsa.store.maintenance.verify import verify
from wsa.store.objects.snapshot import Snapshot, list_records, take_snapshot
from wsa.store.testing.faults import Call, Fault, FaultyBackend, Killed, MemoryBackend, Plan
from wsa.store.testing.samples import (
    ALIASES,
    ALL_PATHS,
    KINDS,
    SEGMENTS,
    Content,
    Work,
    read_object,
    same_content,
)

DAY_S = 86400.0
# Largest error that a wrong clock adds to the age of a file while its writer is active.
SKEW_S = DAY_S


@dataclasses.dataclass(frozen=True)
class Committed:
    """A visible object as it was committed: its content, its record, and its files."""

    content: Content
    record: bytes
    files: Mapping[str, bytes]


WORKS = st.builds(
    Work,
    st.sampled_from(KINDS),
    st.integers(0, SEGMENTS - 1),
    st.sampled_from(ALIASES),
    st.integers(0, 3),
)
FAULTS = st.sampled_from([None, None, "fail", "lose", "late", "cut", "full", "kill"])
# Number of the call with the fault. A commit of a segment makes about 30 calls, and of an embedding
# about 5. A negative number means the put of the last record (-1), or of the one before it (-2).
CALLS = st.one_of(st.integers(-2, -1), st.integers(0, 7), st.integers(0, 40))
CORRUPTIONS = st.sampled_from(["flip", "cut", "grow", "empty", "delete", "swap"])


class StoreMachine(RuleBasedStateMachine):
    """The state machine; see the module.

    Attributes:
        place: Backend of the store.
        model: Visible objects by path, as they were committed.
    """

    def start(self) -> Backend:
        """Return an empty backend; called once per example."""
        return MemoryBackend(clock=self.clock)

    def clock(self) -> float:
        """Return the time of the backend."""
        return self.time_s

    def move_clock(self, by_s: float) -> None:
        """Move the clock of the backend forward or back."""
        self.time_s += by_s

    @initialize()
    def begin(self) -> None:
        """Start with an empty store, and an empty store of another lab."""
        self.time_s = 1_700_000_000.0
        self.place = self.start()
        self.there = MemoryBackend("memory://there")
        self.model: dict[str, Committed] = {}
        self.snapshot = take_snapshot(self.place)
        self.old: tuple[Snapshot, dict[str, Committed]] = (self.snapshot, {})

    @rule(work=WORKS, fault=FAULTS, at=CALLS)
    def commit(self, work: Work, fault: Fault | None, at: int) -> None:
        """Write an object, perhaps with a fault at one of the calls."""
        self._commit(work, FaultyBackend(self.place, _at(work, at, fault)))

    @rule(work=WORKS, at=CALLS, salt=st.integers(0, 3))
    def commit_beside_another(self, work: Work, at: int, salt: int) -> None:
        """Write an object; during one call, another writer writes the same object completely."""
        other = dataclasses.replace(work, salt=salt)
        won: list[bool] = []
        overtaken = FaultyBackend(
            self.place, _at(work, at, "stall"), lambda call: won.append(other.commit(self.place))
        )
        self._commit(work, overtaken, other, won)

    @rule(work=WORKS, at=CALLS, jump_s=st.sampled_from([0.0, SKEW_S, -SKEW_S]))
    def commit_beside_a_sweep(self, work: Work, at: int, jump_s: float) -> None:
        """Write an object; during one call, leftovers are swept and the clock may be a day off."""

        def sweep_now(call: Call) -> None:
            self.move_clock(jump_s)
            sweep(self.place, SKEW_S + 3600, dry_run=False, now=self.clock())

        self._commit(work, FaultyBackend(self.place, _at(work, at, "stall"), sweep_now))

    @rule(by_s=st.sampled_from([60.0, DAY_S, -DAY_S, 3 * DAY_S]))
    def set_the_clock(self, by_s: float) -> None:
        """Let time pass, or set the backend's clock back."""
        self.move_clock(by_s)

    @rule(grace_s=st.sampled_from([0.0, 3600.0, 2 * DAY_S]), dry_run=st.booleans())
    def sweep(self, grace_s: float, dry_run: bool) -> None:
        """A sweep removes exactly the old files that no record names or may name."""
        now = self.clock()
        old = self._sweepable(now - grace_s)
        before = set(self.raw())
        report = sweep(self.place, grace_s, dry_run, now)
        assert report.files == len(old), "it says what it would remove"
        assert before - set(self.raw()) == (set() if dry_run else old)

    @precondition(lambda self: self.raw())
    @rule(which=st.integers(0, 1 << 16), how=CORRUPTIONS, where=st.integers(0, 1 << 16))
    def corrupt(self, which: int, how: str, where: int) -> None:
        """Change a file's bytes without the store's knowledge, or remove it."""
        files = self.raw()
        path = sorted(files)[which % len(files)]
        data = files[path]
        if how == "swap":
            other = sorted(files)[where % len(files)]
            self._overwrite(path, files[other])
            self._overwrite(other, data)
        elif how == "flip" and data:
            at = where % (8 * len(data))
            flipped = data[at // 8] ^ (1 << at % 8)
            self._overwrite(path, data[: at // 8] + bytes([flipped]) + data[at // 8 + 1 :])
        elif how == "delete":
            self.place.delete(path)
        else:
            self._overwrite(
                path, {"cut": data[: where % (len(data) or 1)], "grow": data + b"\0"}.get(how, b"")
            )
        self._forget_lost()

    @rule()
    def repair(self) -> None:
        """Move the objects that `verify` names, so that they can be made again."""
        before = self.raw()
        repair(self.place, verify(self.place).damage)
        kept = {self.place.get(entry.path) for entry in self.place.list(KEPT)}
        gone = before.keys() - self.raw().keys()
        assert all(before[path] in kept for path in gone), "what is taken out is kept"
        self._forget_lost()
        assert not self.unreadable() | self.damaged() | self.lost()

    @rule()
    def reopen(self) -> None:
        """Take a new snapshot without cached records, and keep it for `read_an_old_snapshot`."""
        if not self.unreadable():
            self.snapshot = take_snapshot(self.place)
            self.old = (self.snapshot, dict(self.model))

    @rule(work=WORKS)
    def write_there(self, work: Work) -> None:
        """Write an object to the store of the other lab."""
        work.commit(self.there)

    @rule(fault=FAULTS, at=st.integers(0, 200))
    def merge(self, fault: Fault | None, at: int) -> None:
        """Copy the other lab's objects, perhaps with a fault at one of the calls."""
        source, _ = sync.survey(self.there)
        before = self.visible()
        faulty = FaultyBackend(self.place, {at: fault} if fault else {})
        plan = None
        try:
            target, findings = sync.survey(faulty)
            unreadable = [finding.path for finding in findings]
            plan = sync.plan_sync(source, target, unreadable=unreadable)
            copied = sync.copy(source, faulty, plan)
        except (Killed, StorageError, DamagedError):
            assert fault
            copied = None
        faulty.settle()
        new = self.visible() - before
        for path in new:
            self._remember(path, read_object(source, path))
        if plan:
            assert new <= {commit.path for commit in plan.objects}
        if copied and not fault:
            assert new == {commit.path for commit in copied.objects}

    @rule()
    def verify(self) -> None:
        """`verify` names exactly the changed objects."""
        report = verify(self.place)
        expected = {(record_path(path), "") for path in self.unreadable() | self.lost()}
        files = self.raw()
        for path in self.damaged():
            for file, data in self.model[path].files.items():
                if files.get(file) != data:  # After the attempt: the array's name, if there is one.
                    _, *array, _ = file.removeprefix(f"{path}/").split("/", 2)
                    expected.add((path, "" if path.startswith("models/") else "".join(array)))
        assert {(damage.path, damage.array) for damage in report.damage} == expected
        for damage in report.damage:
            if damage.path in self.model:
                meta = read_commit(self.model[damage.path].record, record_path(damage.path)).meta
                said = [getattr(meta, name, "") for name in ("game", "segment", "model")]
                assert all(word in damage.concerns for word in said), "it says what it concerns"

    @rule()
    def read(self) -> None:
        """Read everything: each object is what was committed, or raises an error."""
        if not self.unreadable():
            self._read(take_snapshot(self.place, self.snapshot), self.model)

    @rule()
    def read_an_old_snapshot(self) -> None:
        """An old snapshot still reads the same, except objects that were changed or removed."""
        self._read(*self.old)

    @invariant()
    def what_is_visible(self) -> None:
        """The store shows the committed objects, or names the records that it cannot read."""
        unreadable = self.unreadable()
        if unreadable:
            try:
                # Not from the earlier snapshot, which may rightly reuse records read when intact.
                take_snapshot(self.place)
            except DamagedError as error:
                assert any(record_path(path) in str(error) for path in unreadable)
            else:
                raise AssertionError(f"the records of {unreadable} were changed unnoticed")
        else:
            self.snapshot = take_snapshot(self.place, self.snapshot)
            assert set(self.snapshot.commits) == set(self.model)

    # The methods below read the backend's raw files, which the store itself never does.

    def raw(self) -> dict[str, bytes]:
        """Return all files by path, except `wsa.json` and those in `damaged/`."""
        paths = [entry.path for entry in self.place.list("")]
        beside = (names.STORE_FILE, f"{KEPT}/")
        return {path: self.place.get(path) for path in paths if not path.startswith(beside)}

    def visible(self) -> set[str]:
        """Return the objects that have a record, valid or not."""
        present = {entry.path for entry in list_records(self.place)}
        return {path for path in ALL_PATHS if record_path(path) in present}

    def unreadable(self) -> set[str]:
        """Return the objects whose records were changed."""
        return {p for p, c in self.model.items() if self.place.get(record_path(p)) != c.record}

    def lost(self) -> set[str]:
        """Return the objects without a record that embeddings depend on, and no repair took out."""
        kept = {entry.path.split("/")[1] for entry in self.place.list(KEPT)}
        needed = {path for meta in self._readable() for path in dependencies(meta)}
        return {p for p in needed - self.visible() if hashing.object_id(p) not in kept}

    def damaged(self) -> set[str]:
        """Return the objects with an intact record and files that were changed or removed."""
        files = self.raw()
        return {
            path
            for path, committed in self.model.items()
            if any(files.get(file) != data for file, data in committed.files.items())
        } - self.unreadable()

    def _commit(
        self,
        work: Work,
        backend: FaultyBackend,
        other: Work | None = None,
        other_won: list[bool] | None = None,
    ) -> None:
        """Let a writer commit, and compare its result with the store's files.

        Args:
            other: The work of a concurrent writer, if there is one.
            other_won: Filled with the results of the concurrent writer.
        """
        before = self.visible()
        won: bool | None = None
        with contextlib.suppress(Killed, StorageError):
            won = work.commit(backend)
        backend.settle()
        new = self.visible() - before
        assert new <= set(work.paths)
        for number, path in enumerate(work.paths):
            if path not in new:
                continue
            found = self._found(path)
            candidates = [w.contents()[number] for w in (work, other) if w]
            assert any(same_content(found, c) for c in candidates), "one writer's, and all of it"
            if path == work.paths[-1] and won:
                assert same_content(found, candidates[0]), "a writer that hears it won has won"
            self._remember(path, found)
        last = work.paths[-1]
        wins = [won, *(other_won or [])].count(True)
        assert wins <= (last in new), "an object is made visible once"
        if won is not None:
            assert last in self.model and wins == (last in new)

    def _found(self, path: str) -> Content:
        """Read a new object like a reader, but without reading other, possibly damaged records."""
        record = read_commit(self.place.get(record_path(path)), record_path(path))
        return read_object(Snapshot(self.place, {path: record}), path)

    def _remember(self, path: str, content: Content) -> None:
        record = self.place.get(record_path(path))
        commit = read_commit(record, record_path(path))
        assert same_content(self._found(path), content)
        files = [f"{commit.folder}/{file.name}" for file in commit.files]
        self.model[path] = Committed(content, record, {f: self.place.get(f) for f in files})

    def _read(self, snapshot: Snapshot, model: Mapping[str, Committed]) -> None:
        assert set(snapshot.commits) == set(model), "a snapshot never changes"
        files = self.raw()
        for path, committed in model.items():
            changed = any(files.get(file) != data for file, data in committed.files.items())
            try:
                found = read_object(snapshot, path)
            except DamagedError as error:
                assert changed and path in str(error), "what is damaged is named"
            else:
                assert not changed, "a changed file was read unnoticed"
                assert same_content(found, committed.content)

    def _readable(self) -> list[Meta]:
        """Return the content of every intact record."""
        intact = self.model.keys() - self.unreadable()
        return [read_commit(self.model[p].record, record_path(p)).meta for p in intact]

    def _sweepable(self, oldest: float) -> set[str]:
        """Return the files that no record names or may name, in attempts that are old enough."""
        named = {file for committed in self.model.values() for file in committed.files}
        unreadable = tuple(f"{path}/" for path in self.unreadable())
        attempts: dict[str, list[tuple[str, float]]] = {}
        for path, _, modified in self.place.list(""):
            if path.startswith(("commits/", f"{KEPT}/", names.STORE_FILE, *unreadable)):
                continue
            own = next((o for o in ALL_PATHS if path.startswith(f"{o}/")), None)
            folder = "/".join(path.split("/")[: own.count("/") + 2]) if own else path
            attempts.setdefault(folder, []).append((path, modified))
        kept = {"/".join(entry.path.split("/")[1:3]) for entry in self.place.list(KEPT)}
        kept = {path.removesuffix(".json") for path in kept}
        without_record = {
            f"{path}/" for meta in self._readable() for path in objects_named(meta)
        } - {f"{path}/" for path in self.visible()}
        named_folders = {
            folder
            for folder, files in attempts.items()
            if named & {f for f, _ in files}
            or any(
                folder.startswith(path)
                and f"{hashing.object_id(path[:-1])}/{folder.removeprefix(path)}" not in kept
                for path in without_record
            )
        }
        return {
            path
            for folder, files in attempts.items()
            if folder not in named_folders and max(modified for _, modified in files) <= oldest
            for path, _ in files
        }

    def _forget_lost(self) -> None:
        """Forget objects without a record, since they count as not committed."""
        visible = self.visible()
        self.model = {path: known for path, known in self.model.items() if path in visible}

    def _overwrite(self, path: str, data: bytes) -> None:
        self.place.delete(path)
        self.place.put_new(path, data)


def _at(work: Work, at: int, fault: Fault | None) -> Plan:
    """Return a plan: a fault at call `at` of a commit, or at a record counted from the last."""

    def plan(call: Call) -> Fault | None:
        if at >= 0:
            return fault if call.number == at else None
        record = record_path(work.paths[max(at, -len(work.paths))])
        return fault if (call.verb, call.path) == ("put_new", record) else None

    return plan
