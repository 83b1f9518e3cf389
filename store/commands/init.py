"""The command `wsa init`: create a store, and share it with a group."""

from __future__ import annotations

import grp
import os
import stat
from pathlib import Path

from wsa.store.backends.open import open_backend
from wsa.store.common import atomic_files, terminal
from wsa.store.common.errors import StorageError, UsageError
from wsa.store.configs import InitOptions
from wsa.store.objects.root import open_store

SHARED = 0o2775  # The group may write, and new files and folders inherit the group.


def init(o: InitOptions) -> int:
    """`wsa init`."""
    if o.group and not o.shared:
        raise UsageError("--group is for a shared store; add --shared.")
    if not o.shared:
        return terminal.result(o.json, {"store": open_store(o.store, create=True).url})
    if "://" in o.store and not o.store.startswith("file:///"):
        raise UsageError(
            "--shared sets the permissions of a folder; the settings of a bucket say who may write "
            "to it."
        )
    root = Path(open_backend(o.store).url)
    with atomic_files.storage_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        _share(root, o.group)
    backend = open_store(str(root), create=True)
    changed, others = _share_content(root)
    values: dict[str, object] = {
        "store": backend.url,
        "group": atomic_files.group_name(root.stat().st_gid),
        "mode": stat.filemode(root.stat().st_mode),
        "files_changed": changed,
    }
    terminal.result(o.json, values)
    if others:
        owners = ", ".join(sorted(others))
        raise StorageError(
            "no-permission",
            f"{sum(others.values())} files and folders of {root} belong to {owners}, and only they "
            "can share these. Ask them to run the same command.",
        )
    return 0


def _share(root: Path, group: str) -> None:
    """Let `group` write to the root, or the root's own group if `group` is empty."""
    if group:
        try:
            number = grp.getgrnam(group).gr_gid
        except KeyError:
            raise UsageError(
                f"--group {group}: this machine has no such group ('getent group')."
            ) from None
        os.chown(root, -1, number)
    root.chmod(SHARED)


def _share_content(root: Path) -> tuple[int, dict[str, int]]:
    """Give everything in a store the permissions and the group of its root.

    Returns:
        Number of files and folders changed, and the number that each other user must change.
    """
    wanted = root.stat()
    changed, others = 0, dict[str, int]()
    for parent, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(parent, name)
            try:
                changed += _share_one(path, wanted)
            except FileNotFoundError:
                continue  # A writer's temporary file, removed by now.
            except PermissionError:
                owner = atomic_files.user_name(path.lstat().st_uid)
                others[owner] = others.get(owner, 0) + 1
    return changed, others


def _share_one(path: Path, wanted: os.stat_result) -> bool:
    """Give a file or folder the permissions and the group of the root; return whether it changed."""
    found = path.lstat()
    mode = wanted.st_mode & (0o2777 if stat.S_ISDIR(found.st_mode) else 0o666)
    if found.st_gid == wanted.st_gid and stat.S_IMODE(found.st_mode) == mode:
        return False
    if found.st_gid != wanted.st_gid:
        os.chown(path, -1, wanted.st_gid, follow_symlinks=False)
    if not stat.S_ISLNK(found.st_mode):
        path.chmod(mode)
    return True
