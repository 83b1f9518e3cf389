"""A copy between stores is a union: whole, checked, resumable, and it never overwrites anything."""

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsa.encode.jobs.plan import make_plan
from wsa.store.common import hashing, names
from wsa.store.common.errors import DamagedError, MissingError, StorageError, WsaError
from wsa.store.exchange import sync
from wsa.store.exchange.sync import copy, plan_sync, saved, survey
from wsa.store.format import records
from wsa.store.format.records import EmbeddingMeta, FramesMeta, ModelMeta, SegmentMeta
from wsa.store.objects import writer
from wsa.store.objects.snapshot import take_snapshot
from wsa.store.testing import FaultyBackend, Killed, MemoryBackend, unnamed

GAMES = ("Breakout", "Pong")
NUMBERS = (0, 1)
ALIASES = ("lite0", "vit")


def make_lab(kit, name):
    """A store with two segments of each of two games, encoded by two models."""
    lab = MemoryBackend(f"memory://{name}", at_once=4)
    for alias in ALIASES:
        kit.add_model(lab, kit.key(alias))
    for game in GAMES:
        for number in NUMBERS:
            meta, _ = kit.add_segment(lab, number, game=game)
            for alias in ALIASES:
                kit.add_embedding(lab, meta, kit.key(alias))
    return lab


@pytest.fixture(scope="module")
def labs(kit):
    """Two labs that did the same work independently."""
    return make_lab(kit, "ours"), make_lab(kit, "theirs")


@pytest.fixture
def ours(labs):
    return without_objects(labs[0])


def without_objects(lab, lacks=lambda meta: False):
    """A copy of a store, except some objects."""
    copied = MemoryBackend(lab.url, at_once=lab.at_once)
    for commit in take_snapshot(lab).commits.values():
        if not lacks(commit.meta):
            for path in (names.commit_path(commit.id), *files(commit)):
                copied.put_new(path, lab.get(path))
    return copied


def first_of_pong(lab):
    """One segment, and what its embeddings need."""
    return without_objects(
        lab,
        lambda meta: (
            not isinstance(meta, ModelMeta)
            and (meta.game != "Pong" or "-000000000-" not in meta.segment)
        ),
    )


def files(commit):
    return [f"{commit.folder}/{file.name}" for file in commit.files]


def sync_all(source, target, *args, **options):
    have = take_snapshot(source)
    plan = plan_sync(have, take_snapshot(target), *args, **options)
    return plan, copy(have, target, plan)


def objects(backend):
    return set(take_snapshot(backend).commits)


def check_whole(backend, lab):
    """Compare every object with the lab's; how many there are."""
    snapshot, expected = take_snapshot(backend), take_snapshot(lab)
    for path, commit in snapshot.commits.items():
        assert snapshot.read_files(commit) == expected.read_files(expected.commits[path])
    for meta in snapshot.embeddings():
        assert names.model_path(meta.model) in snapshot.commits
        assert names.segment_path(meta.game, meta.segment) in snapshot.commits
    return len(snapshot.commits)


def assert_same_but_attempt(copied, commit):
    """A copy is its own attempt; author, time and files are those of the writer."""
    assert copied.attempt != commit.attempt
    same = msgspec.structs.replace(copied, attempt=commit.attempt)
    assert records.seal(same) == commit


# What a store of `make_lab` may lack: frames, rows and embeddings, each of some segments.
@st.composite
def lacking(draw):
    segments = st.sampled_from([(game, number) for game in GAMES for number in NUMBERS])
    rows = draw(st.sets(segments, max_size=3))
    frames = draw(st.sets(segments, max_size=3))
    models = draw(st.sets(st.sampled_from(ALIASES), max_size=1))
    embeddings = draw(st.sets(st.tuples(segments, st.sampled_from(ALIASES)), max_size=6))

    def without(meta):
        if isinstance(meta, ModelMeta):
            return names.key_alias(meta.model) in models
        of = meta.game, int(meta.segment.split("-")[2]) // 12
        if isinstance(meta, EmbeddingMeta):
            alias = names.key_alias(meta.model)
            return of in rows or alias in models or (of, alias) in embeddings
        return of in rows or (isinstance(meta, FramesMeta) and of in frames)

    return without


@settings(max_examples=settings().max_examples // 3)
@given(lacking(), lacking(), st.data())
def test_a_copy_adds_exactly_what_was_asked_for(labs, lacking_ours, lacking_theirs, data):
    source, target = (
        without_objects(labs[0], lacking_ours),
        without_objects(labs[1], lacking_theirs),
    )
    before = dict(target.files)
    has = take_snapshot(source)
    games = data.draw(st.lists(st.sampled_from(has.games), unique=True)) if has.games else []
    models = data.draw(st.lists(st.sampled_from(has.models), unique=True)) if has.models else []
    frames = data.draw(st.booleans())

    asked = set()
    for path, commit in has.commits.items():
        meta = commit.meta
        if isinstance(meta, ModelMeta):
            used = {e.model for game in games for e in has.embeddings(game)}
            wanted = meta.model in models if models else not games or meta.model in used
        elif isinstance(meta, EmbeddingMeta):
            wanted = meta.game in (games or GAMES) and meta.model in (models or has.models)
        else:
            wanted = meta.game in (games or GAMES) and (frames or isinstance(meta, SegmentMeta))
        asked |= {path} if wanted else set()
    had = objects(target)

    plan, done = sync_all(source, target, games, models, frames)
    assert objects(target) == had | asked
    assert {c.path for c in plan.objects} == {c.path for c in done.objects} == asked - had
    assert (plan.present, plan.left) == (done.present, done.left) == (len(asked & had), 0)
    assert (plan.damaged, plan.conflicts, done.damaged) == ((), (), ())
    assert check_whole(target, labs[0]) == len(had | asked)
    assert before.items() <= target.files.items(), "a byte of the target was changed"
    brought = take_snapshot(target).commits
    for commit in done.objects:
        assert_same_but_attempt(brought[commit.path], commit)

    after = dict(target.files)
    plan, done = sync_all(source, target, games, models, frames)
    assert (plan.objects, plan.present, done.objects) == ((), len(asked), ())
    assert target.files == after


@settings(max_examples=settings().max_examples // 3)
@given(lacking(), lacking())
def test_both_directions_end_in_the_same_union(labs, lacking_ours, lacking_theirs):
    ours, theirs = without_objects(labs[0], lacking_ours), without_objects(labs[1], lacking_theirs)
    there, back = without_objects(theirs), without_objects(ours)
    sync_all(ours, there)
    sync_all(theirs, back)
    assert objects(there) == objects(back) == objects(ours) | objects(theirs)


def test_a_plan_says_which_passes_it_saves(kit, labs, ours):
    first = kit.fake_segment(0)[0]
    without = without_objects(
        labs[1], lambda meta: isinstance(meta, EmbeddingMeta) and meta.segment == first.segment
    )
    plan = plan_sync(take_snapshot(ours), take_snapshot(without))
    assert [type(c.meta) for c in plan.objects] == [EmbeddingMeta] * 4
    assert saved(plan.objects) == (4 * first.frames, 4 * 0.5)


def test_an_object_is_copied_after_what_it_depends_on(ours):
    target = FaultyBackend(MemoryBackend(at_once=16))
    sync_all(ours, target)
    has = {names.commit_path(c.id): c.meta for c in take_snapshot(ours).commits.values()}
    put = [call.path for call in target.calls if call.verb == "put_new"]
    order = [sync.ORDER.index(type(has[path])) for path in put if path in has]
    assert len(order) == len(has)
    assert order == sorted(order)
    for commit in take_snapshot(target).commits.values():
        record = put.index(names.commit_path(commit.id))
        assert all(put.index(path) < record for path in files(commit))


@pytest.mark.variants
@pytest.mark.parametrize(
    ("fault", "stride"), [("kill", 5), ("kill", 1), ("fail", 1), ("lose", 1), ("full", 1)]
)
def test_a_copy_interrupted_at_any_call_can_be_resumed(labs, fault, stride):
    source = first_of_pong(labs[0])
    whole, number = objects(source), 0
    for number in range(0, 10_000, stride):
        target = MemoryBackend("memory://target", at_once=4)
        faulty = FaultyBackend(target, {number: fault})
        with contextlib.suppress(Killed, StorageError):
            sync_all(source, faulty)
        if len(faulty.calls) <= number:
            break
        check_whole(target, labs[0])
        before = dict(target.files)
        sync_all(source, target)
        assert before.items() <= target.files.items()
        assert objects(target) == whole
        assert check_whole(target, labs[0]) == len(whole)
    assert number >= 3 * len(whole), "asked, put at least one file, put the record"


def test_ctrl_c_leaves_whole_objects(ours):
    target = MemoryBackend(at_once=4)
    have = take_snapshot(ours)
    seen = []

    def stop(commit):
        seen.append(commit)
        if len(seen) == 9:
            raise KeyboardInterrupt

    threads = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        copy(have, target, plan_sync(have, take_snapshot(target)), stop)
    assert set(threading.enumerate()) <= threads
    assert 9 <= check_whole(target, ours) < len(have.commits)
    sync_all(ours, target)
    assert check_whole(target, ours) == len(have.commits)
    assert not unnamed(target)


def test_files_of_a_dead_copy_are_not_used(ours):
    """They may be truncated, or swept at any moment; another copy takes another folder."""
    have = take_snapshot(ours)
    target = MemoryBackend()
    for commit in have.commits.values():
        target.put_new(files(commit)[0], b"cut")
    _, done = sync_all(ours, target)
    assert len(done.objects) == len(have.commits) == check_whole(target, ours)
    for path, commit in take_snapshot(target).commits.items():
        assert_same_but_attempt(commit, have.commits[path])
        target.delete(files(have.commits[path])[0])
    assert check_whole(target, ours) == len(have.commits)
    assert not unnamed(target)


def test_two_copies_at_once_bring_each_object_once(labs):
    sources = [take_snapshot(labs[at % 2]) for at in range(4)]
    for _ in range(3):
        target = MemoryBackend(at_once=4)
        plans = [plan_sync(source, take_snapshot(target)) for source in sources]
        start = threading.Barrier(len(plans), timeout=60)

        def run(source, plan, start=start, target=target):
            start.wait()
            return copy(source, target, plan)

        with ThreadPoolExecutor(len(plans)) as threads:
            done = list(threads.map(run, sources, plans))
        brought = [commit.path for one in done for commit in one.objects]
        assert sorted(brought) == sorted(sources[0].commits)
        assert sum(one.present for one in done) == 3 * len(brought)
        assert check_whole(target, labs[0]) == len(brought)
        assert not unnamed(target), "a late copy removes its files"


def one_of_each(snapshot):
    return [
        next(c for c in snapshot.commits.values() if isinstance(c.meta, kind))
        for kind in sync.ORDER
    ]


def depending_on(snapshot, commit):
    meta = commit.meta
    if isinstance(meta, ModelMeta):
        return {records.meta_path(e) for e in snapshot.embeddings(model=meta.model)}
    if isinstance(meta, SegmentMeta):
        found = snapshot.embeddings(meta.game)
        return {records.meta_path(e) for e in found if e.segment == meta.segment}
    return set()


@pytest.mark.variants
@pytest.mark.parametrize("how", ["flip", "cut", "empty", "lose"])
def test_damage_is_not_copied_but_the_rest_is(labs, how):
    ours = first_of_pong(labs[0])
    first_and_last = [
        (commit, files(commit)[at]) for commit in one_of_each(take_snapshot(ours)) for at in (0, -1)
    ]
    for commit, path in first_and_last:
        source, target = without_objects(ours), MemoryBackend("memory://target", at_once=4)
        data = bytearray(source.get(path))
        source.delete(path)
        if how != "lose":
            data[len(data) // 2] ^= 1
            source.put_new(path, {"flip": data, "cut": data[:-1], "empty": b""}[how])
        plan, done = sync_all(source, target)
        lost = depending_on(take_snapshot(ours), commit)
        assert [found.path for found in done.damaged] == [commit.path]
        assert "wsa verify" in done.damaged[0].why
        assert path in done.damaged[0].why
        assert done.left == len(lost)
        assert objects(target) == objects(ours) - {commit.path} - lost
        assert len(done.objects) == len(plan.objects) - 1 - len(lost)
        check_whole(target, ours)
        assert not unnamed(target)
        # Once it is repaired, the same copy adds the rest.
        sync_all(ours, target)
        assert objects(target) == objects(ours)


def test_a_damaged_record_of_the_source_is_named_and_the_rest_is_copied(ours):
    for commit in one_of_each(take_snapshot(ours)):
        source, target = without_objects(ours), MemoryBackend("memory://target")
        record = names.commit_path(commit.id)
        data = source.get(record)
        source.delete(record)
        source.put_new(record, data[:-2])
        with pytest.raises(DamagedError):
            take_snapshot(source)
        have, damaged = survey(source)
        assert [found.path for found in damaged] == [record]
        lost = depending_on(take_snapshot(ours), commit)
        if isinstance(commit.meta, SegmentMeta):  # Frames without rows are useless.
            lost |= {names.frames_path(commit.meta.game, commit.meta.segment)}
        plan = plan_sync(have, take_snapshot(target))
        copy(have, target, plan)
        assert objects(target) == objects(ours) - {commit.path} - lost
        assert plan.left == len(depending_on(take_snapshot(ours), commit))
        check_whole(target, ours)


def test_a_damaged_record_of_the_target_stays_and_nothing_is_added_to_it(ours):
    for commit in one_of_each(take_snapshot(ours)):
        lost = depending_on(take_snapshot(ours), commit)
        target = without_objects(ours, lambda meta, lost=lost: records.meta_path(meta) in lost)
        record = names.commit_path(commit.id)
        target.delete(record)
        target.put_new(record, b"{}")
        before = dict(target.files)
        there, damaged = survey(target)
        assert [found.path for found in damaged] == [record]
        have = take_snapshot(ours)
        plan = plan_sync(have, there, unreadable={record})
        assert (plan.objects, plan.left) == ((), len(lost))
        copy(have, target, plan)
        assert target.files == before


def other_frames(kit, lab, game="Pong"):
    """The lab, but with other frames in the first segment of a game."""
    meta, arrays = kit.remember(0, game=game)
    other = without_objects(
        lab, lambda m: getattr(m, "segment", "") == meta.segment and m.game == game
    )
    digests = arrays["digest"].copy()
    digests[-1] ^= 1
    writer.commit_segment(other, meta, {**arrays, "digest": digests})
    for alias in ALIASES:
        kit.add_embedding(other, meta, kit.key(alias))
    return other


def test_steps_that_the_target_has_in_other_segments_are_left_alone(kit):
    ours, theirs = (MemoryBackend(f"memory://{name}") for name in ("ours", "theirs"))
    for number, env in ((3, 0), (0, 0), (1, 1)):  # Steps 36 to 48 and 0 to 12, and of another env.
        kit.add_segment(ours, number, steps=12, env=env)
    added = [kit.add_segment(theirs, number, steps=8)[0] for number in range(8)]
    plan = plan_sync(take_snapshot(theirs), take_snapshot(ours))
    twice = {records.meta_path(added[number]) for number in (0, 1, 4, 5)}
    assert {found.path for found in plan.conflicts} == twice
    copied = {c.path for c in plan.objects if isinstance(c.meta, SegmentMeta)}
    assert copied == {records.meta_path(meta) for meta in added} - twice


def test_a_segment_with_other_frames_is_a_conflict_and_is_left_alone(kit, labs):
    source = other_frames(kit, labs[0])
    first = kit.fake_segment(0)[0]
    path = names.segment_path("Pong", first.segment)

    def lacks(meta):  # Embeddings, also those of the segment; and all frames.
        return isinstance(meta, EmbeddingMeta | FramesMeta)

    target = without_objects(labs[1], lacks)
    before = dict(target.files)
    plan, _ = sync_all(source, target)
    assert [found.path for found in plan.conflicts] == [path]
    assert "--seed" in plan.conflicts[0].why
    assert plan.left == len(ALIASES)
    own = {
        names.frames_path("Pong", first.segment),
        *(names.embedding_path("Pong", kit.key(alias), first.segment) for alias in ALIASES),
    }
    assert objects(target) == objects(source) - own
    assert before.items() <= target.files.items()
    check_whole(target, labs[0])
    # A copy of another game does not mention it.
    assert plan_sync(take_snapshot(source), take_snapshot(target), ["Breakout"]).conflicts == ()


def test_equal_frames_in_other_bytes_are_the_same_segment(kit, labs, ours, monkeypatch):
    first = kit.fake_segment(0)[0]
    source = without_objects(
        ours, lambda m: getattr(m, "segment", "") == first.segment and m.game == "Pong"
    )
    whole = writer.layout.encode_group

    def spaced(arrays):
        packed = whole(arrays)
        return {n: d + b" " if n.endswith("zarr.json") else d for n, d in packed.items()}

    monkeypatch.setattr(writer.layout, "encode_group", spaced)
    meta, _ = kit.add_segment(source, 0)
    plan = plan_sync(take_snapshot(source), take_snapshot(without_objects(labs[1])))
    assert (plan.conflicts, plan.objects, plan.left) == ((), (), 0)
    # If they must be compared and cannot be, they do not count as equal.
    commit = take_snapshot(source).commits[records.meta_path(meta)]
    digest = next(path for path in files(commit) if "/digest/c" in path)
    source.delete(digest)
    plan = plan_sync(
        take_snapshot(source),
        take_snapshot(without_objects(labs[1], lambda m: isinstance(m, EmbeddingMeta))),
    )
    assert [found.path for found in plan.damaged] == [commit.path]
    assert {records.meta_path(c.meta) for c in plan.objects}.isdisjoint(
        names.embedding_path("Pong", kit.key(alias), meta.segment) for alias in ALIASES
    )


def test_labs_with_the_same_model_share_its_passes(kit):
    ours, theirs = MemoryBackend("memory://ours"), MemoryBackend("memory://theirs")
    key = kit.key("vit")
    for lab, number in ((ours, 0), (theirs, 1)):
        kit.add_model(lab, key)
        meta, _ = kit.add_segment(lab, number)
        shared, _ = kit.add_segment(lab, 5)
        kit.add_embedding(lab, meta, key)
        kit.add_embedding(lab, shared, key)
    sync_all(theirs, ours)
    plan = make_plan(take_snapshot(ours), [key], ["Pong"])
    assert (plan.items, plan.present) == ((), 3)


@pytest.mark.parametrize("same", [True, False])
def test_two_models_with_one_key_and_other_files_are_compared(kit, ours, labs, same):
    key = kit.key("vit")
    source = without_objects(ours, lambda meta: isinstance(meta, ModelMeta) and meta.model == key)
    other = {"spec.json": b"{}", "probe.safetensors": b"other"}
    writer.commit_model(source, ModelMeta(key), other)
    target = without_objects(labs[1], lambda meta: isinstance(meta, EmbeddingMeta))
    asked = []

    def same_model(ours, theirs):
        asked.append((ours, theirs["spec.json"]))
        return same

    plan, _ = sync_all(source, target, same_model=same_model)
    assert asked == [
        (other, labs[1].get(files(take_snapshot(labs[1]).commits[names.model_path(key)])[1]))
    ]
    if same:
        assert (plan.conflicts, plan.left) == ((), 0)
        assert objects(target) == objects(labs[0])
    else:
        assert [found.path for found in plan.conflicts] == [names.model_path(key)]
        assert plan.left == 4
        assert take_snapshot(target).embeddings(model=key) == []
        assert len(take_snapshot(target).embeddings()) == 4


def test_an_alias_means_all_its_keys(kit, ours):
    keys_of = [names.make_model_key("vit", hashing.identity(weights)) for weights in "ab"]
    for key in keys_of:
        kit.add_model(ours, key)
    for wanted, expected in ((["vit"], 3), ([keys_of[0]], 1), (["vit", "lite0"], 4)):
        plan = plan_sync(take_snapshot(ours), take_snapshot(MemoryBackend()), (), wanted)
        assert sum(isinstance(c.meta, ModelMeta) for c in plan.objects) == expected


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"games": ["Pongo"]}, ["Pongo", "Did you mean Pong?", "Breakout, Pong", "--game"]),
        ({"models": ["dino"]}, ["dino", "lite0-", "vit-", "--models"]),
        ({"models": ["vit", "dino-000000000000"]}, ["dino-000000000000", "--models"]),
    ],
)
def test_asking_for_what_the_source_lacks_names_what_it_has(ours, asked, words):
    with pytest.raises(MissingError) as refused:
        plan_sync(take_snapshot(ours), take_snapshot(MemoryBackend()), **asked)
    assert all(word in str(refused.value) for word in [*words, ours.url])


def test_embeddings_without_their_segment_or_model_are_not_copied(ours, labs):
    segment = take_snapshot(ours).segments("Pong")[0]
    for without in (
        lambda meta: isinstance(meta, SegmentMeta) and meta == segment,
        lambda meta: isinstance(meta, ModelMeta),
    ):
        target = MemoryBackend("memory://target")
        plan, done = sync_all(without_objects(ours, without), target)
        check_whole(target, ours)
        assert plan.left + len(take_snapshot(target).embeddings()) == 8
        assert done.left == plan.left
        sync_all(ours, target)
        assert objects(target) == objects(ours)


@pytest.mark.parametrize("most", [0, 600])
def test_few_large_files_are_in_memory_at_once(ours, monkeypatch, most):
    monkeypatch.setattr(sync, "MAX_HELD_BYTES", most)
    have, held, peak = take_snapshot(ours), 0, 0
    largest = {c.path: max(file.bytes for file in c.files) for c in have.commits.values()}
    lock = threading.Lock()
    copy_object = sync._copy_object

    def watched(source, target, commit):
        nonlocal held, peak
        with lock:
            held += largest[commit.path]
            peak = max(peak, held)
        outcome = copy_object(source, target, commit)
        with lock:
            held -= largest[commit.path]
        return outcome

    monkeypatch.setattr(sync, "_copy_object", watched)
    target = MemoryBackend(at_once=16)
    copy(have, target, plan_sync(have, take_snapshot(target)))
    assert objects(target) == objects(ours)
    assert peak <= max(most, *largest.values())


def test_a_failing_store_is_not_taken_for_damage(ours):
    for number in range(0, 60, 11):
        source = FaultyBackend(without_objects(ours), {number: "fail"})
        with pytest.raises(WsaError) as refused:
            sync_all(source, MemoryBackend())
        assert isinstance(refused.value, StorageError)


def test_a_link_in_the_target_is_not_reported_as_damage_of_the_source(ours, store, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "store" / "models").symlink_to(tmp_path / "outside")
    with pytest.raises(DamagedError, match="leads out"):
        sync_all(ours, store)
    assert list((tmp_path / "outside").iterdir()) == []
