"""The commands `wsa verify`, `wsa sweep` and `wsa du`."""

from __future__ import annotations

import dataclasses
import math
import re

from wsa.store.common import terminal
from wsa.store.common.errors import DamagedError, StorageError, UsageError
from wsa.store.configs import DuOptions, SweepOptions, VerifyOptions
from wsa.store.objects.root import open_snapshot, open_store

# Longest printed list. The rest is counted, and --json prints all.
SHOWN = 20


def verify(o: VerifyOptions) -> int:
    """`wsa verify`: exit code 5 if there was damage, repaired or not."""
    from wsa.store.maintenance.repair import repair
    from wsa.store.maintenance.verify import verify as check

    share = sample_share(o.sample)
    backend = open_store(o.store)
    terminal.say(f"store {backend.url}")
    with terminal.Progress("verify", "objects", shown=not o.json) as progress:
        report = check(backend, progress.update, share)
    values = dataclasses.asdict(report)
    del values["damage"], values["unlisted"]
    repairs = repair(backend, report.damage) if o.repair else []
    refused = sum(d.refused for d in report.damage)
    damaged = len(report.damage) + report.unlisted - refused
    # Files that the storage refused to read may be intact.
    code = DamagedError.exit_code if damaged else StorageError.exit_code if refused else 0
    if o.json:
        damage = [dataclasses.asdict(d) | {"concerns": d.concerns} for d in report.damage]
        values |= {"damage": damage, "unlisted": report.unlisted}
        values["repaired"] = [dataclasses.asdict(done) for done in repairs]
        terminal.result(True, values | {"refused": refused})
        return code
    terminal.result(False, values | {"damaged": damaged, "refused": refused})
    if share < 1:
        terminal.say(f"A sample: {report.objects:,} of {report.of:,} objects, chosen at random.")
    for found in report.damage:
        word = "refused" if found.refused else "damaged"
        print(f"{word}: {found.concerns}\n  {found.why}")
    for done in repairs:
        print(
            f"{terminal.plain(done.path)}: {f'kept in {done.kept}' if done.kept else 'left as it is'}"
        )
        for file in done.left:
            print(f"  not copied, and left where it is: {terminal.plain(file)}")
        print(f"  Next: {done.next}")
    if report.incomplete:
        terminal.say(
            f"{terminal.plural(report.incomplete, 'segment')} "
            f"{'has' if report.incomplete == 1 else 'have'} files of frames or rows that no record "
            "names. The command that wrote them was interrupted, is still running, or their record is lost. Run "
            "the same 'wsa collect' or 'wsa pull' again; 'wsa sweep' leaves them alone."
        )
    if damaged and not o.repair:
        terminal.say(
            "To make or fetch damaged objects again: wsa verify --repair. It moves what is left of "
            "them to damaged/ and says what to run next for each."
        )
    return code


def sample_share(text: str) -> float:
    """Parse a fraction, written `1%` or `0.01`.

    Raises:
        UsageError: If it is not a number above 0 and up to 1.
    """
    number = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+)(%?)", text.strip())
    share = float(number[1]) / (100 if number[2] else 1) if number else 0.0
    if not 0 < share <= 1:
        raise UsageError(f"--sample {text}: write a share of the objects, such as 1% or 0.01.")
    return share


def sweep(o: SweepOptions) -> int:
    """`wsa sweep`."""
    from wsa.store.maintenance.sweep import sweep as clean

    if not 1 <= o.grace_hours < math.inf:  # An active writer needs time to commit.
        raise UsageError(f"--grace-hours must be 1 or more, not {o.grace_hours}.")
    backend = open_store(o.store)
    terminal.say(f"store {backend.url}")
    report = clean(backend, 3600 * o.grace_hours, dry_run=not o.yes)
    values = {
        "leftover_files": report.files,
        "leftover_bytes": report.bytes,
        "removed_files": report.removed,
        "kept_young": report.kept_young,
        "kept_for_damaged_records": report.protected,
    }
    if o.json:
        leftovers = [dataclasses.asdict(leftover) for leftover in report.leftovers]
        return terminal.result(True, values | {"leftovers": leftovers, "strange": report.strange})
    if report.leftovers:
        rows = [
            [leftover.path, leftover.files, terminal.size(leftover.bytes), leftover.age_s / 3600]
            for leftover in report.leftovers[:SHOWN]
        ]
        terminal.table("", ["leftover", "files", "size", "hours old"], rows)
        _more(len(report.leftovers))
    terminal.result(False, values)
    if report.strange:
        print("not the store's own, and left alone:")
        print("\n".join(f"  {terminal.plain(path)}" for path in report.strange[:SHOWN]))
        _more(len(report.strange))
    if report.protected:
        terminal.say("Objects with a damaged or lost record are left alone: see 'wsa verify'.")
    if report.leftovers and not o.yes:
        terminal.say("Nothing was removed. To remove these files: wsa sweep --yes")
    return 0


def _more(count: int) -> None:
    if count > SHOWN:
        print(f"  and {count - SHOWN:,} more")


def du(o: DuOptions) -> int:
    """`wsa du`."""
    from wsa.store.maintenance.usage import usage

    _, snapshot = open_snapshot(o.store)
    found = usage(snapshot, o.by)
    if o.json:
        return terminal.result(True, dataclasses.asdict(found))
    terminal.table(
        "",
        [o.by, "objects", "frames", "screens", "rows", "embeddings", "models", "total", "compute"],
        [
            [
                share.name,
                share.objects,
                share.frames,
                *map(terminal.size, (share.screens, share.rows, share.embeddings, share.models)),
                terminal.size(share.bytes),
                terminal.duration(share.seconds),
            ]
            for share in (*found.shares, found.total)
        ],
    )
    for what, place in (("that no record names", found.leftovers), ("in damaged/", found.damaged)):
        if place.files:
            print(f"{terminal.plural(place.files, 'file')} {what}: {terminal.size(place.bytes)}")
    return 0
