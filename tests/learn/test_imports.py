"""Importing play: Minari datasets and files of arrays become segments, or are refused."""

import json
import sys
from typing import Any

import gymnasium
import minari
import msgspec
import numpy as np
import pytest
import zarr
from minari.data_collector.episode_buffer import EpisodeBuffer
from numpy.typing import NDArray

from wsa.cli import main
from wsa.learn.collect import collect as collecting
from wsa.learn.collect.array_source import Arrays
from wsa.learn.collect.import_data import plan_import, run_import, state_protocol
from wsa.learn.collect.minari_source import open_minari
from wsa.learn.collect.sources import PartialProtocol
from wsa.learn.envs import atari as games
from wsa.store.common.errors import MissingError, StorageError, UsageError
from wsa.store.format.records import Protocol
from wsa.store.maintenance.verify import verify
from wsa.store.objects.root import open_store
from wsa.store.objects.snapshot import take_snapshot

GAME = "Breakout"
STEPS = 37
Episodes = list[dict[str, NDArray[Any]]]


@pytest.fixture(scope="module")
def played():
    """Three episodes of real play: one to the end of the game, two that were cut."""
    games.quiet_emulator()
    games.games()
    found = []
    env = gymnasium.make(f"ALE/{GAME}-v5", repeat_action_probability=0)
    for seed, limit in enumerate((400, 40, 5)):
        generator = np.random.default_rng(seed)
        seen, info = env.reset(seed=seed)
        observations, lives, steps = [seen], [info["lives"]], []
        while len(steps) < limit and not (steps and steps[-1][2]):
            action = int(generator.integers(4))
            seen, reward, terminated, _, info = env.step(action)
            observations.append(seen)
            lives.append(info["lives"])
            steps.append(
                (action, float(reward), terminated, not terminated and len(steps) == limit - 1)
            )
        columns = [np.array(column) for column in zip(*steps, strict=True)]
        keys = ("actions", "rewards", "terminations", "truncations")
        found.append(
            {
                "observations": np.stack(observations),
                "lives": np.array(lives),
                **dict(zip(keys, columns, strict=True)),
            }
        )
    env.close()
    assert found[0]["terminations"][-1] and found[1]["truncations"][-1]
    assert sum(episode["rewards"].sum() for episode in found) > 0
    return found


def dataset(episodes, name="x", env=None, **options):
    """A real Minari dataset in the folder of MINARI_DATASETS_PATH."""
    buffers = [
        EpisodeBuffer(
            id=number,
            observations=list(episode["observations"]),
            actions=list(episode["actions"]),
            rewards=list(episode["rewards"]),
            terminations=list(episode["terminations"]),
            truncations=list(episode["truncations"]),
            infos={"lives": episode["lives"]},
        )
        for number, episode in enumerate(episodes)
    ]
    env = env or gymnasium.make(
        f"ALE/{GAME}-v5", repeat_action_probability=0, max_episode_steps=400
    )
    return minari.create_dataset_from_buffers(
        dataset_id=f"atari/breakout/{name}-v0",
        buffer=buffers,
        env=env,
        eval_env=env.spec,
        algorithm_name="uniform",
        author="a",
        author_email="a@b",
        code_permalink="https://example.org",
        description="play",
        **options,
    )


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path


def flat(episodes):
    """Episodes as arrays whose last observations stand in place."""
    closing = {"actions": -1, "rewards": 0, "terminations": False, "truncations": False}
    return {
        name: np.concatenate(
            [
                np.append(episode[name], np.array([closing[name]], episode[name].dtype))
                if name in closing
                else episode[name]
                for episode in episodes
            ]
        )
        for name in episodes[0]
    }


def apart(episodes):
    """Episodes as arrays whose last observations stand apart."""
    arrays = {
        name: np.concatenate([e[name][: len(e["actions"])] for e in episodes])
        for name in episodes[0]
    }
    arrays["final_observations"] = np.stack([e["observations"][-1] for e in episodes])
    return arrays


def protocol_of(source, **asked):
    return state_protocol(GAME, source.facts, PartialProtocol(**asked))


def import_from(store, source, protocol=None, steps=STEPS):
    stated = protocol or protocol_of(source)
    plan = plan_import(take_snapshot(store), source, GAME, stated, "uniform", steps)
    return run_import(plan, source, store)


def check(snapshot, episodes):
    """Compare every row with the episodes, context and last frames included."""
    seen = [(e, t) for e, episode in enumerate(episodes) for t in range(len(episode["actions"]))]
    done = 0
    for meta in snapshot.segments(GAME):
        assert meta.start == done
        rows, pictures = snapshot.read_rows(meta), snapshot.read_frames(meta)
        expected = []  # episode, time, whether a step
        first = seen[done]
        expected += [(first[0], t, False) for t in range(max(0, first[1] - 3), first[1])]
        context = len(expected)
        for e, t in seen[done : done + meta.steps]:
            expected.append((e, t, True))
            if t + 1 == len(episodes[e]["actions"]):
                expected.append((e, t + 1, False))
        if expected[-1][2]:
            e, t, _ = expected[-1]
            expected.append((e, t + 1, False))
        assert len(expected) == meta.rows
        for i, (e, t, step) in enumerate(expected):
            episode = episodes[e]
            np.testing.assert_array_equal(pictures[rows["frame"][i]], episode["observations"][t])
            assert rows["lives"][i] == episode["lives"][t]
            assert rows["episode"][i] == e and rows["is_first"][i] == (t == 0)
            assert rows["context"][i] == (i < context)
            for name, column, idle in (
                ("action", "actions", -1),
                ("reward", "rewards", 0),
                ("terminated", "terminations", False),
                ("truncated", "truncations", False),
            ):
                assert rows[name][i] == (episode[column][t] if step else idle)
        done += meta.steps
    assert done == len(seen)


def test_a_minari_dataset_becomes_segments(here, store, played):
    dataset(played, jpeg_encoding=False)
    source = open_minari("atari/breakout/x-v0")
    assert (source.game, source.policy, source.lossy) == (GAME, "uniform", False)
    written = import_from(store, source)
    snapshot = take_snapshot(store)
    check(snapshot, played)
    assert verify(store).damage == ()
    assert [meta.steps for meta in written[:-1]] == [STEPS] * (len(written) - 1)
    meta = written[0]
    assert (meta.policy, meta.env, meta.emulator) == ("uniform", 0, ("unknown", "unknown"))
    assert meta.protocol == Protocol(
        name="custom",
        frame_skip=4,
        sticky=0.0,
        noop_max=0,
        fire_reset=False,
        full_action_space=False,
        max_pool=False,
        max_steps=400,
        actions=("NOOP", "FIRE", "RIGHT", "LEFT"),
    )
    episodes = [e for meta in snapshot.segments(GAME) for e in meta.episodes]
    assert episodes == [(len(e["actions"]), e["rewards"].sum()) for e in played]
    assert {frames.indexed for frames in snapshot.frames(GAME)} == {True}
    # Importing it again, by its folder and in longer segments, adds nothing.
    folder = here / "minari" / "atari" / "breakout" / "x-v0"
    for again in (open_minari(str(folder)), open_minari(str(folder / "data"))):
        assert import_from(store, again, steps=50) == []
    assert len(take_snapshot(store).commits) == len(snapshot.commits)


@pytest.mark.slow
def test_jpeg_screens_are_stored_as_decoded(here, store, played):
    played = played[1:]
    stored = dataset(played)
    source = open_minari("atari/breakout/x-v0")
    assert source.lossy
    import_from(store, source)
    snapshot = take_snapshot(store)
    decoded = [{**e, "observations": f.observations} for e, f in zip(played, stored, strict=True)]
    assert (decoded[0]["observations"] != played[0]["observations"]).any()
    check(snapshot, decoded)
    assert {frames.indexed for frames in snapshot.frames(GAME)} == {False}


@pytest.mark.slow
def test_the_same_data_in_another_layout_is_the_same_run(here, store, played):
    played = played[1:]
    dataset(played, jpeg_encoding=False)
    source = open_minari("atari/breakout/x-v0")
    import_from(store, source)
    stated = protocol_of(source)
    before = set(take_snapshot(store).commits)
    np.savez_compressed(here / "flat.npz", **flat(played))  # type: ignore[arg-type]
    np.savez(here / "apart.npz", **apart(played))  # type: ignore[arg-type]
    group = zarr.create_group(here / "flat.zarr", zarr_format=3)
    for name, array in flat(played).items():
        group.create_array(name, data=array, chunks=(7, *array.shape[1:]))
    packed = flat(played)["observations"].astype(np.int32) @ np.array([1 << 16, 1 << 8, 1])
    numbers, index = np.unique(packed, return_inverse=True)
    colors = np.stack([numbers >> 16, (numbers >> 8) & 255, numbers & 255], axis=1)
    indexed = flat(played)
    shape = indexed.pop("observations").shape[:3]
    # Shuffled frames that rows point to, as palette indices.
    order = np.random.default_rng(0).permutation(shape[0])
    indexed["frames"] = index.reshape(shape).astype(np.uint8)[order]
    indexed["frame_index"] = np.argsort(order)
    indexed["palette"] = colors.astype(np.uint8)
    np.savez(here / "indexed.npz", **indexed)  # type: ignore[arg-type]
    for name in ("flat.npz", "flat.zarr", "indexed.npz", "apart.npz"):
        found = Arrays(here / name)
        assert found.steps == sum(len(e["actions"]) for e in played)
        if name == "apart.npz":  # It lacks the lives of last observations.
            assert import_from(open_store(str(here / "other"), create=True), found, stated)
            continue
        assert import_from(store, found, stated) == []
    assert set(take_snapshot(store).commits) == before
    other = take_snapshot(open_store(str(here / "other")))
    unknown = [{**e, "lives": np.append(e["lives"][:-1], 0)} for e in played]
    check(other, unknown)


def test_an_interrupted_import_resumes(here, store, played, monkeypatch):
    played = played[1:]
    np.savez(here / "x.npz", **flat(played))  # type: ignore[arg-type]
    source = Arrays(here / "x.npz")
    stated = protocol_of(source, frame_skip=4, sticky=0.0)
    commit = collecting.commit_segment
    left = 3

    def failing(*arguments):
        nonlocal left
        left -= 1
        if left < 0:
            raise StorageError("no-space", "full")
        return commit(*arguments)

    monkeypatch.setattr(collecting, "commit_segment", failing)
    with pytest.raises(StorageError):
        import_from(store, source, stated, 9)
    assert len(take_snapshot(store).segments(GAME)) == 3
    monkeypatch.undo()
    rest = import_from(store, source, stated, 9)
    whole = open_store(str(here / "whole"), create=True)
    everything = import_from(whole, source, stated, 9)
    assert len(rest) == len(everything) - 3
    files = [
        {c.path: c.files for c in take_snapshot(backend).commits.values()}
        for backend in (store, whole)
    ]
    assert files[0] == files[1]
    check(take_snapshot(store), played)


def test_the_last_observation_of_a_game_that_ended_may_be_missing(here, store, played):
    game = played[:1]
    arrays = apart(game)
    del arrays["final_observations"], arrays["lives"]
    np.savez(here / "x.npz", **arrays)  # type: ignore[arg-type]
    source = Arrays(here / "x.npz")
    import_from(store, source, protocol_of(source, frame_skip=4, sticky=0.0))
    last = game[0]["observations"].copy()
    last[-1] = last[-2]
    check(
        take_snapshot(store),
        [{**game[0], "observations": last, "lives": np.zeros(len(last), np.int64)}],
    )


def test_an_episode_without_an_end_is_truncated(here, store, played):
    played = played[1:]
    cut = [{**e, "truncations": np.zeros_like(e["truncations"])} for e in played]
    np.savez(here / "x.npz", **flat(cut))  # type: ignore[arg-type]
    source = Arrays(here / "x.npz")
    import_from(store, source, protocol_of(source, frame_skip=4, sticky=0.0))
    check(take_snapshot(store), played)


def changed(name, at, value):
    def change(arrays):
        arrays[name][at] = value

    return change


def drop(name):
    return lambda arrays: arrays.pop(name)


def put(name, of):
    return lambda arrays: arrays.update({name: of(arrays.get(name))})


@pytest.mark.parametrize(
    ("layout", "change", "message"),
    [
        (flat, drop("rewards"), "there is no array rewards"),
        (flat, drop("observations"), "there is no array observations"),
        (flat, put("rewards", lambda a: a[:-1]), "must be columns of one length"),
        (flat, put("actions", lambda a: a[:, None]), "columns of one length"),
        (flat, put("actions", lambda a: a.astype(np.float32)), "they must be whole numbers"),
        (flat, changed("rewards", 3, np.nan), "the reward of step 3 is nan"),
        (flat, changed("rewards", 3, 1e300), "the reward of step 3 is 1e"),
        (flat, changed("actions", 2, 4), "Step 2 of episode 0 has an action out of range"),
        (flat, changed("actions", 2, -2), "has actions 0 to 3"),
        (flat, changed("terminations", 3, True), "continues after its end at step 3"),
        (flat, put("truncations", lambda a: a * 2.0), "truncations must be true or false"),
        (flat, changed("actions", -1, 1), "the last episode has no last observation"),
        (flat, changed("rewards", -1, 1), "a row with action -1 has a reward or an end"),
        (flat, changed("actions", 0, -1), "row 0 has action -1 and belongs to no episode"),
        (flat, put("lives", lambda a: a - 9), "lives must be"),
        (flat, put("lives", lambda a: a + 0.5), r"lives must be \d+ whole"),
        (flat, put("lives", lambda a: a * np.nan), r"must be \d+ whole numbers"),
        (flat, put("observations", lambda a: a[..., 0]), "whole RGB screens of Breakout"),
        (flat, put("observations", lambda a: a[:, :84, :84, 0]), r"observations are \(\d+, 84, 84"),
        (flat, put("observations", lambda a: a.astype(np.int16)), r"\) int16"),
        (flat, put("observations", lambda a: np.stack([a] * 4, 1)), "stacked"),
        (flat, put("palette", lambda a: np.zeros((9, 4), np.uint8)), "palette is"),
        (flat, put("observations", lambda a: a[:-1]), "rows show frames 0 to"),
        (apart, put("truncations", lambda a: a & False), "the last episode has no end"),
        (apart, drop("final_observations"), "no last observation, whose value learning needs"),
        (apart, put("final_observations", lambda a: a[1:]), "3 episodes and 2 final_observations"),
        (apart, put("final_observations", lambda a: a[:, ::2]), "whole RGB screens"),
    ],
)  # fmt: skip
def test_bad_arrays_are_refused_and_nothing_is_written(
    here, store, played, layout, change, message
):
    arrays = {
        name: array.astype(np.float64) if name == "rewards" else array.copy()
        for name, array in layout([played[2]] * 3).items()
    }
    change(arrays)
    np.savez(here / "x.npz", **arrays)
    with pytest.raises(UsageError, match=message):
        source = Arrays(here / "x.npz")
        import_from(store, source, protocol_of(source, frame_skip=4, sticky=0.0))
    assert list(store.list("games")) == []


def test_other_files_are_refused(here):
    with pytest.raises(MissingError, match="There is no"):
        Arrays(here / "nothing")
    (here / "text.npz").write_text("not a zip file")
    (here / "folder").mkdir()
    np.savez(here / "objects.npz", actions=np.array([{}], object))
    np.savez_compressed(here / "damaged.npz", actions=np.arange(1000) % 7)
    data = bytearray((here / "damaged.npz").read_bytes())
    data[60:70] = bytes(10)  # Inside the compressed array.
    (here / "damaged.npz").write_bytes(data)
    zarr.create_group(here / "old.zarr", zarr_format=2)
    for name in ("text.npz", "folder", "objects.npz", "damaged.npz", "old.zarr"):
        with pytest.raises(
            UsageError, match=r"neither an .npz file of plain arrays nor a Zarr"
        ) as caught:
            Arrays(here / name)
        assert "unsafe" not in str(caught.value)


def test_a_color_that_the_palette_lacks_is_refused(here, store, played):
    arrays = flat(played[2:])
    arrays["observations"] = arrays["observations"][..., 0]
    arrays["palette"] = np.zeros((1, 3), np.uint8)
    np.savez(here / "x.npz", **arrays)  # type: ignore[arg-type]
    source = Arrays(here / "x.npz")
    with pytest.raises(UsageError, match=r"shows color [0-9]+ of 1"):
        import_from(store, source, protocol_of(source, frame_skip=4, sticky=0.0))


def test_the_protocol_must_be_known_and_agree():
    with pytest.raises(
        UsageError, match="State it with --frame-skip and --sticky, or with --protocol"
    ):
        state_protocol(GAME, PartialProtocol(), PartialProtocol())
    with pytest.raises(UsageError, match=r"with sticky 0\.0; --sticky says 0\.25"):
        state_protocol(
            GAME, PartialProtocol(frame_skip=4, sticky=0.0), PartialProtocol(sticky=0.25)
        )
    with pytest.raises(UsageError, match=r"with frame_skip 2; --protocol v5 says 4"):
        state_protocol(GAME, PartialProtocol(frame_skip=2), PartialProtocol(), "v5")
    for wrong in ({"frame_skip": 0}, {"sticky": 1.0}, {"max_steps": 0}):
        with pytest.raises(UsageError, match="must be at least 1"):
            state_protocol(
                GAME,
                PartialProtocol(),
                PartialProtocol(**{"frame_skip": 4, "sticky": 0.0, **wrong}),
            )
    for name in ("classic", "v5"):
        assert state_protocol(GAME, PartialProtocol(), PartialProtocol(), name) == games.protocol(
            GAME, name
        )
        facts = {
            f: getattr(games.protocol(GAME, name), f) for f in PartialProtocol.__dataclass_fields__
        }
        assert state_protocol(GAME, PartialProtocol(**facts), PartialProtocol()) == games.protocol(
            GAME, name
        )
    full = state_protocol(GAME, PartialProtocol(), PartialProtocol(4, 0.0, True))
    assert (full.name, len(full.actions)) == ("custom", 18)
    assert msgspec.json.decode(msgspec.json.encode(full), type=Protocol) == full


def wrapped(**options):
    inner = gymnasium.make(f"ALE/{GAME}-v5", frameskip=1)
    return gymnasium.wrappers.AtariPreprocessing(inner, **options)


def test_minari_names_the_protocol(here, played):
    env = wrapped(grayscale_obs=False, screen_size=(160, 210), noop_max=7)
    dataset(played[2:], "pre", env, jpeg_encoding=False)
    assert open_minari("atari/breakout/pre-v0").facts == PartialProtocol(
        4, 0.25, False, 7, False, True, 27000
    )


def small(episode):
    return {**episode, "observations": episode["observations"][:, :84, :84, 0]}


def test_minari_data_that_does_not_suffice_is_refused(here, store, played):
    dataset([small(played[2])], "gray", wrapped())
    with pytest.raises(UsageError, match=r"Box\(0, 255, \(84, 84\), uint8\)\. wsa needs whole RGB"):
        import_from(store, open_minari("atari/breakout/gray-v0"))
    dataset(played[2:], "lives", wrapped(terminal_on_life_loss=True), jpeg_encoding=False)
    with pytest.raises(UsageError, match="ends an episode at every lost life"):
        open_minari("atari/breakout/lives-v0")
    env = gymnasium.wrappers.ClipReward(gymnasium.make(f"ALE/{GAME}-v5"), -1, 1)
    dataset(played[2:], "signs", env)
    with pytest.raises(UsageError, match="through the wrapper ClipReward"):
        open_minari("atari/breakout/signs-v0")
    with pytest.raises(UsageError, match="cannot be read as a Minari dataset"):
        open_minari(str(here))
    with pytest.raises(MissingError, match="minari download atari/pong/expert-v0"):
        open_minari("atari/pong/expert-v0")
    assert list(store.list("games")) == []


def test_without_minari_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(MissingError, match=r"pip install 'minari\[hdf5\]'"):
        open_minari("atari/pong/expert-v0")


def test_a_random_frame_skip_is_refused(here, played):
    env = gymnasium.make(f"ALE/{GAME}-v5", frameskip=(2, 5))
    dataset(played[2:], "skips", env)
    with pytest.raises(UsageError, match=r"frame skip \[2, 5\]; wsa records one fixed skip"):
        open_minari("atari/breakout/skips-v0")


def test_the_command_reads_game_and_policy_from_the_data(here, played, monkeypatch, capsys):
    monkeypatch.setenv("WSA_STORE", str(here / "new"))
    dataset(played[1:])
    command = ["import", "minari", "atari/breakout/x-v0"]
    assert main([*command, "--game", "Pong"]) == 2
    assert "contains Breakout, not Pong. Leave out --game." in capsys.readouterr().err
    dataset([small(played[2])], "gray", wrapped())
    assert main(["import", "minari", "atari/breakout/gray-v0"]) == 2
    capsys.readouterr()
    assert main([*command, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["missing"] == 45
    assert not (here / "new").exists()
    assert main([*command, "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["steps"] == 45
    assert "played by uniform" in said.err and "The screens are JPEG images" in said.err
