"""`wsa show GAME --html`: the page of a stored game."""

import io
import json
import re

import browser_kit
import numpy as np
import pytest
from PIL import Image

from wsa.learn.report import game_page, similar
from wsa.learn.report.frame_sample import choose_segments, draw, read_pngs
from wsa.learn.report.probe_result import read_probe
from wsa.store.common.errors import UsageError
from wsa.store.objects.snapshot import Snapshot, take_snapshot

HOSTILE = '<img src="https://example.org/x">'


@pytest.fixture
def store(in_memory):
    return in_memory


def add_segments(kit, store, count=5, **options):
    """Add segments of 40 steps; one model has encoded all, the other the first two."""
    models = [kit.key("lite0"), kit.key("vit")]
    for number in range(count):
        ends = (20,) if number % 2 else ()
        meta, _ = kit.add_segment(store, number, steps=40, ends=ends, **options)
        kit.add_embedding(store, meta, models[0])
        if number < 2:
            kit.add_embedding(store, meta, models[1], window=3)
    return models


def read_text(page):
    return " ".join(re.sub(r"(?s)<svg.*?</svg>|<[^>]+>", " ", page).split())


def test_the_page_has_every_section(kit, store, tmp_path):
    models = add_segments(kit, store)
    mean = {"value": 0.5, "low": 0.25, "high": 0.75}
    model = {"name": HOSTILE, "numbers": 3, "both": {"mean_r2": mean, "r2": {"ball x": None}}}
    printed = {"game": kit.GAME, "target": "ram", "samples": 100, "models": [model]}
    (tmp_path / "probe.json").write_text(json.dumps(printed))
    probe = read_probe(tmp_path / "probe.json", kit.GAME)
    progress = []
    page = game_page.make_page(
        take_snapshot(store), kit.GAME, remark=HOSTILE, probe=probe,
        on_segment=lambda *counts: progress.append(counts),
    )  # fmt: skip
    text = read_text(page)
    assert re.findall(r'<section id="(\w+)"', page) == [
        *("contents", "frames", "rewards", "models", "similar", "probe"),
    ]
    assert "A random frame of each of 5 of 5 segments with frames." in text
    assert 'aria-label="Return of each episode"' in page and "random 200 2 1.50 1.50 1.50" in text
    assert f"{models[0]} 5 of 5 100%" in text and f"{models[1]} 2 of 5 40%" in text
    assert (
        f"{models[1]}, frame 4" in text and "of 2 segments, of 2 that the model has encoded" in text
    )
    assert "0.50 [0.25, 0.75]" in text and "ball x" in text
    assert progress[-1] == (5, 5)
    assert page.count("data:image/png") == 5 + sum(
        len(group)
        for found in find_similar(take_snapshot(store), kit.GAME, models)
        for group in found.groups
    )


def find_similar(snapshot, game, models):
    return similar.similar_by_model(snapshot, game, models, snapshot.segments(game), 12, 200)


def test_a_store_without_frames_episodes_or_models_has_a_page(kit, store):
    meta, _ = kit.add_segment(store, 0)
    full = take_snapshot(store)
    frames_path, _ = kit.segment_paths(meta)
    frameless = {path: commit for path, commit in full.commits.items() if path != frames_path}
    page = read_text(game_page.make_page(Snapshot(store, frameless), kit.GAME))
    assert "but not their frames. Fetch them: wsa pull URL" in page
    assert "No episode ended" in page and f"None yet: wsa encode --game {kit.GAME}" in page
    assert "considers similar" not in page
    assert "A random frame of each of 1 of 1" in read_text(game_page.make_page(full, kit.GAME))


def test_many_episodes_are_averaged():
    episodes = [(i, float(i % 10)) for i in range(1000)]
    figure = game_page._returns({"random": episodes[:999], "run": episodes[999:]}, 1000)
    assert "1,000 episodes" in figure.note and "mean of 7 episodes" in figure.note
    assert len(figure.svg) < 40_000


def test_samples_are_bounded_and_stay_the_same(kit, store, monkeypatch):
    models = add_segments(kit, store, 6)
    snapshot = take_snapshot(store)
    metas = snapshot.segments(kit.GAME)
    assert choose_segments(metas[::-1], 3) == choose_segments(metas, 6)[:3]
    few, many = draw(snapshot, metas, 5), draw(snapshot, metas, 1000)
    assert len(few) == 30 and (few.frames == many.of({m.segment for m in metas}, 5).frames).all()
    assert len(many) == sum(meta.frames for meta in metas)
    monkeypatch.setattr(similar, "MOST_NUMBERS", 3 * 6 * 10)
    assert [len(f.sample) for f in find_similar(snapshot, kit.GAME, models)] == [60, 60]
    assert len(find_similar(snapshot, kit.GAME, models[:1])) == 1
    (few_segments,) = similar.similar_by_model(snapshot, kit.GAME, models[:1], metas, 2, 7)
    assert len(few_segments.sample) == 14


@pytest.mark.parametrize("indexed", [True, False])
def test_pictures_are_the_stored_frames(kit, store, indexed):
    meta, _ = kit.add_segment(store, 0, indexed=indexed)
    snapshot = take_snapshot(store)
    pngs = read_pngs(snapshot, meta, [0, 3])
    for frame, png in pngs.items():
        shown = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
        assert (shown == snapshot.read_frames(meta)[frame]).all()


def test_neighbors_are_the_nearest_frames_from_other_moments(kit, store):
    for number in range(4):
        kit.add_segment(store, number, steps=100, frames=60)
    snapshot = take_snapshot(store)
    sample = draw(snapshot, snapshot.segments(kit.GAME), 50)
    embeddings = np.random.default_rng(0).normal(size=(200, 4)).astype("f4")
    embeddings[:, 3] = 7  # A constant is ignored.
    groups = similar.find_similar(sample, embeddings)
    assert [len(group) for group in groups] == [6] * 4
    assert len({int(sample.owners[group[0].n]) for group in groups}) == 4
    standard = (embeddings - embeddings.mean(0))[:, :3] / embeddings.std(0)[:3]
    unit = standard / np.linalg.norm(standard, axis=1, keepdims=True)
    for group in groups:
        distances = 1 - unit @ unit[group[0].n]
        shown = [one.n for one in group]
        np.testing.assert_allclose([one.distance for one in group], distances[shown], atol=1e-5)
        assert np.all(np.diff([one.distance for one in group]) >= 0)
        steps = np.sort(sample.steps[shown])
        assert (np.diff(steps) >= similar.APART).all()
        far = np.abs(sample.steps - sample.steps[shown[0]]) >= similar.APART
        assert distances[far].min() == pytest.approx(group[1].distance, abs=1e-5)


def test_equal_frames_are_shown_once(kit, store):
    """Also those of other steps and environments."""
    for env in range(3):
        kit.add_segment(store, 0, env=env, frames=3, steps=40)
    snapshot = take_snapshot(store)
    sample = draw(snapshot, snapshot.segments(kit.GAME), 50)
    digests = np.repeat(sample.digests[:1], len(sample.digests), axis=0)
    equal = type(sample)(**{**vars(sample), "digests": digests})
    groups = similar.find_similar(equal, np.arange(9, dtype=np.float32)[:, None])
    assert [len(group) for group in groups] == [1] * 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        ("{", "is not what 'wsa probe --game Pong --json' prints"),
        ('{"game": "Pong"}', "is not what 'wsa probe --game Pong --json' prints"),
        ('{"game": "Qbert", "target": "ram", "samples": 1, "models": []}', "of Qbert, not of Pong"),
    ],
)
def test_files_that_are_no_probe_of_the_game_are_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "probe.json").write_text(content)
    with pytest.raises(UsageError, match=re.escape(message)):
        read_probe(tmp_path / "probe.json", "Pong")


@pytest.mark.slow
@browser_kit.needs_browser
@pytest.mark.parametrize("width", [400, 1280])
def test_a_browser_shows_the_page(kit, store, tmp_path, width):
    add_segments(kit, store, height=210, width=160)
    page = game_page.make_page(take_snapshot(store), kit.GAME, remark=HOSTILE)
    seen = browser_kit.look(page, tmp_path, width)
    assert browser_kit.count_pixels(seen, 0x00, 0x72, 0xB2) > 100  # The curve of returns.
    browser_kit.check_width(seen)
