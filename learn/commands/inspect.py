"""`wsa list` and `wsa show`: contents of a store."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wsa.learn.configs.data import ListOptions, ShowOptions
from wsa.learn.envs import atari
from wsa.store.common import names, terminal
from wsa.store.common.errors import UsageError
from wsa.store.objects.root import open_snapshot
from wsa.store.objects.snapshot import Snapshot

_log = logging.getLogger(__name__)


def list_games(o: ListOptions) -> int:
    """`wsa list`."""
    from wsa.store.maintenance.summary import summaries

    if o.games:
        print(json.dumps(list(atari.games()), indent=2) if o.json else "\n".join(atari.games()))
        return 0
    _, snapshot = open_snapshot(o.store)
    games = summaries(snapshot)
    if o.json:
        return terminal.result(True, {s.game: dataclasses.asdict(s) for s in games})
    if not games:
        terminal.say("The store is empty. Collect some frames: wsa collect --game Seaquest")
        return 0
    terminal.table(
        "",
        ["game", "segments", "steps", "distinct frames", "episodes", "mean return", "size"],
        [
            [
                s.game,
                s.segments,
                s.steps,
                s.frames,
                s.episodes,
                s.mean_return,
                terminal.size(s.bytes),
            ]
            for s in games
        ],
    )
    covered = [
        [s.game, what, f"{count:,} of {s.segments:,}", f"{math.floor(100 * count / s.segments)}%"]
        for s in games
        for what, count in [("(frames)", s.pictured), *s.encoded.items()]
    ]
    terminal.table(
        "\nsegments with frames, and with embeddings of each model",
        ["game", "model", "segments", ""],
        covered,
    )
    return 0


def show(o: ShowOptions) -> int:
    """`wsa show`."""
    from wsa.store.maintenance.summary import card, model_card, segment_card

    describe: Callable[[Snapshot, str], dict[str, Any]]
    if _fits(names.segment, o.what):
        describe = segment_card
    elif _fits(names.model_key, o.what):
        describe = model_card
    else:
        describe = card
        if _fits(names.alias, o.what):
            _refuse_alias(o)
        atari.check_game(o.what)
    if o.html and describe is not card:
        raise UsageError(f"--html is for a game, and {o.what} is not one. Leave it out.")
    if o.probe and not o.html:
        raise UsageError("--probe is for a page; add --html PATH.")
    _, snapshot = open_snapshot(o.store)
    remark = _reward_remark(snapshot, o.what) if describe is card else ""
    values = _write_page(snapshot, o, remark) if o.html else describe(snapshot, o.what)
    if remark:
        _log.warning(remark)
    return terminal.result(o.json, values)


def _refuse_alias(o: ShowOptions) -> None:
    """Refuse the alias of models in the store, for which `wsa show` takes keys."""
    _, snapshot = open_snapshot(o.store, or_empty=True)
    if keys := names.keys_named(snapshot.models, o.what):
        raise UsageError(
            f"{o.what} is a model; write its key: {' or '.join(keys)}.", kind="bad-name"
        )


def _write_page(snapshot: Snapshot, o: ShowOptions, remark: str) -> dict[str, Any]:
    """Write the page of a game.

    Raises:
        UsageError: If the result of a probe cannot be shown.
        StorageError: If the page cannot be written there.
    """
    from wsa.learn.report.game_page import make_page
    from wsa.learn.report.probe_result import read_probe
    from wsa.store.common import atomic_files

    path = Path(o.html).expanduser()
    if path.is_dir():
        raise UsageError(f"--html {path} is a folder: name a file in it.")
    atomic_files.require_writable(path.parent)
    probe = read_probe(Path(o.probe).expanduser(), o.what) if o.probe else None
    with terminal.Progress("read", "segments", shown=not o.json) as progress:
        html = make_page(
            snapshot,
            o.what,
            remark=remark and f"Warning: {remark}",
            probe=probe,
            on_segment=progress.update,
        )
    atomic_files.replace(path, html.encode())
    return {"page": str(path), "bytes": len(html.encode())}


def _reward_remark(snapshot: Snapshot, game: str) -> str:
    """A warning if no stored step of a game earned a reward, else nothing."""
    from wsa.learn.collect.rewards import rewarded_steps, warning

    segments = snapshot.segments(game)
    # Read rows only if the records do not tell: a large store has many.
    earned = any(returned for meta in segments for _, returned in meta.episodes)
    if not segments or earned or rewarded_steps(snapshot, segments):
        return ""
    return warning(game, sum(meta.steps for meta in segments))


def _fits(grammar: Callable[[str], str], name: str) -> bool:
    try:
        grammar(name)
    except UsageError:
        return False
    return True
