"""A store that a group shares: permissions follow the root, and missing write permission is reported first."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from wsa.cli import main
from wsa.store.backends.base import Backend
from wsa.store.common.errors import StorageError
from wsa.store.maintenance.verify import verify
from wsa.store.objects.root import open_store, require_writable
from wsa.store.objects.writer import commit_segment

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs to become other users")
OWNER, COLLEAGUE, STRANGER, GROUP = 41001, 41002, 41003, 42000


@pytest.fixture
def segment(fake_segment: Any) -> Callable[[Backend], None]:
    """Commits a segment."""

    def commit(backend: Backend) -> None:
        meta, arrays = fake_segment()
        commit_segment(backend, meta, arrays)

    return commit


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def modes(root: Path) -> tuple[set[int], set[int]]:
    """Permissions of the folders and of the files in a store."""
    found: tuple[set[int], set[int]] = (set(), set())
    for path in root.rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        found[0 if path.is_dir() else 1].add(mode)
    return found


@pytest.mark.parametrize("mask", [0o077, 0o022, 0o000])
@pytest.mark.parametrize("mode", [0o2775, 0o755, 0o700])
def test_what_is_made_has_the_permissions_of_the_root(
    mode: int, mask: int, tmp_path: Path, segment: Any, umask: Callable[[int], int]
) -> None:
    root = tmp_path / "lab"
    root.mkdir()
    root.chmod(mode)
    umask(mask)
    backend = open_store(str(root), create=True)
    segment(backend)
    assert modes(root) == ({mode}, {mode & 0o666})


def run_as(user: int, groups: list[int], *arguments: object) -> subprocess.CompletedProcess[str]:
    """A command of a user with umask 077, who has no home."""
    return python_as(user, groups, "-m", "wsa.cli", *arguments)


def python_as(user: int, groups: list[int], *arguments: object) -> subprocess.CompletedProcess[str]:
    """This interpreter, run by a user with umask 077, who has no home."""
    who = ["setpriv", f"--reuid={user}", f"--regid={user}"]
    who += [f"--groups={','.join(map(str, groups))}"] if groups else ["--clear-groups"]
    command = [*who, sys.executable, *map(str, arguments)]
    environment = {"PATH": os.environ["PATH"], "WSA_CACHE": f"/tmp/wsa-test-cache-{user}"}
    return subprocess.run(
        ["bash", "-c", 'umask 077; exec "$@"', "-", *command],
        env=environment, cwd="/", capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A folder of a user and a group, below folders that everybody may pass."""
    root = tmp_path / "lab"
    root.mkdir()
    for folder in (tmp_path, *list(tmp_path.parents)[:2]):  # pytest's own, for its user alone.
        folder.chmod(folder.stat().st_mode | 0o011)
    os.chown(root, OWNER, GROUP)
    if python_as(STRANGER, [], "-c", f"import os, wsa.cli; os.stat({str(root)!r})").returncode:
        pytest.skip(
            "other users cannot reach this interpreter or its files, or there is no setpriv"
        )
    return root


COLLECT = ("collect", "--game", "Pong", "--num-envs", 1, "--json", "--store")


@as_root
def test_two_users_of_a_group_add_to_one_store(lab: Path) -> None:
    started = run_as(OWNER, [GROUP], "init", "--store", lab, "--shared", "--json")
    assert started.returncode == 0, started.stderr
    assert json.loads(started.stdout)["mode"] == "drwxrwsr-x"
    for user, steps in ((OWNER, 8), (COLLEAGUE, 16), (OWNER, 24)):
        added = run_as(user, [GROUP], *COLLECT, lab, "--steps", steps)
        assert added.returncode == 0 and json.loads(added.stdout)["steps"] == 8, added.stderr
    assert modes(lab) == ({0o2775}, {0o664})
    assert {path.stat().st_gid for path in lab.rglob("*")} == {GROUP}
    assert {path.stat().st_uid for path in lab.rglob("*.json")} == {OWNER, COLLEAGUE}
    assert verify(open_store(str(lab))).damage == ()
    # Users outside the group can read, and cannot add.
    read = run_as(STRANGER, [], "list", "--store", lab, "--json")
    assert json.loads(read.stdout)["Pong"]["steps"] == 24
    refused = run_as(STRANGER, [], *COLLECT, lab, "--steps", 32)
    (line,) = [line for line in refused.stderr.splitlines() if line.startswith("wsa collect: ")]
    assert refused.returncode == 6 and f"belongs to {OWNER}:{GROUP}, mode drwxrwsr-x" in line
    assert line.endswith("docs/howto/share.md says how a group shares a store.")
    # What is there already needs no permission.
    again = run_as(STRANGER, [], *COLLECT, lab, "--steps", 24)
    assert again.returncode == 0 and json.loads(again.stdout)["steps"] == 0


@pytest.mark.slow
@as_root
def test_frames_go_through_no_model_where_nothing_can_be_added(lab: Path) -> None:
    lab.chmod(0o755)
    assert run_as(OWNER, [], *COLLECT, lab, "--steps", 8).returncode == 0
    encode = ("encode", "--store", lab, "--scheduler", "inproc", "--json")
    refused = run_as(STRANGER, [], *encode)
    assert refused.returncode == 6 and "Permission denied" in refused.stderr
    assert refused.stderr.count("Permission denied") == 1 and "SegmentDone" not in refused.stderr
    assert run_as(OWNER, [], *encode).returncode == 0
    nothing_to_do = run_as(STRANGER, [], *encode)
    assert nothing_to_do.returncode == 0, nothing_to_do.stderr


@pytest.mark.slow
@as_root
def test_a_store_that_is_there_becomes_shared(lab: Path) -> None:
    lab.chmod(0o755)
    assert run_as(OWNER, [], *COLLECT, lab, "--steps", 8).returncode == 0
    (lab / "games" / "theirs").mkdir()  # By root.
    shared = run_as(OWNER, [GROUP], "init", "--store", lab, "--shared")
    assert shared.returncode == 6 and "1 files and folders" in shared.stderr
    assert "belong to root" in shared.stderr
    (lab / "games" / "theirs").rmdir()
    assert run_as(OWNER, [GROUP], "init", "--store", lab, "--shared").returncode == 0
    assert modes(lab) == ({0o2775}, {0o664})
    assert run_as(COLLEAGUE, [GROUP], *COLLECT, lab, "--steps", 16).returncode == 0


def test_a_folder_that_others_made_is_looked_at_too(
    store: Backend, segment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment(store)
    require_writable(store)
    real = os.access
    monkeypatch.setattr(os, "access", lambda p, how: Path(p).name != "segments" and real(p, how))
    with pytest.raises(StorageError, match="segments: Permission denied") as caught:
        require_writable(store)
    assert caught.value.kind == "no-permission"


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--group", "lab"], "add --shared"),
        (["--shared", "--group", "no-such-group"], "no such group"),
        (["--shared", "--store", "s3://lab/wsa"], "permissions of a folder"),
    ],
)
def test_what_cannot_be_shared_so(
    options: list[str], what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = [] if "--store" in options else ["--store", str(tmp_path / "new")]
    assert main(["init", *where, *options]) == 2
    assert what in capsys.readouterr().err


def test_init_starts_a_store_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert main(["init", "--store", str(tmp_path / "new"), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["store"] == str(tmp_path / "new")
    assert (tmp_path / "new" / "wsa.json").is_file()
