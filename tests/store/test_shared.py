"""A store shared by a group: permissions follow its root, and a missing one is reported first."""

import json
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from wsa.cli import main
from wsa.store.common.errors import StorageError
from wsa.store.maintenance.verify import verify
from wsa.store.objects.root import open_store, require_writable
from wsa.store.objects.writer import commit_segment

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs to become other users")
OWNER, COLLEAGUE, STRANGER, GROUP = 41001, 41002, 41003, 42000


@pytest.fixture
def segment(fake_segment):
    """Commits a segment."""

    def commit(backend):
        meta, arrays = fake_segment()
        commit_segment(backend, meta, arrays)

    return commit


@pytest.fixture
def umask():
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def modes(root):
    """Permissions of the folders and of the files in a store."""
    folders_and_files = (set(), set())
    for path in root.rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        folders_and_files[0 if path.is_dir() else 1].add(mode)
    return folders_and_files


@pytest.mark.parametrize("mask", [0o077, 0o022, 0o000])
@pytest.mark.parametrize("mode", [0o2775, 0o755, 0o700])
def test_new_files_get_the_permissions_of_the_root(mode, mask, tmp_path, segment, umask):
    root = tmp_path / "lab"
    root.mkdir()
    root.chmod(mode)
    umask(mask)
    backend = open_store(str(root), create=True)
    segment(backend)
    assert modes(root) == ({mode}, {mode & 0o666})


def run_as(user, groups, *arguments):
    """Run wsa as a user with umask 077 and no home."""
    return python_as(user, groups, "-m", "wsa.cli", *arguments)


def python_as(user, groups, *arguments):
    """Run this interpreter as a user with umask 077 and no home."""
    who = ["setpriv", f"--reuid={user}", f"--regid={user}"]
    who += [f"--groups={','.join(map(str, groups))}"] if groups else ["--clear-groups"]
    command = [*who, sys.executable, *map(str, arguments)]
    environment = {"PATH": os.environ["PATH"], "WSA_CACHE": f"/tmp/wsa-test-cache-{user}"}
    return subprocess.run(
        ["bash", "-c", 'umask 077; exec "$@"', "-", *command],
        env=environment, cwd="/", capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture
def lab():
    """A folder of a user and a group; not in `tmp_path`, which others may not enter."""
    with tempfile.TemporaryDirectory(prefix="wsa-lab-") as folder:
        Path(folder).chmod(0o755)
        root = Path(folder, "lab")
        root.mkdir()
        os.chown(root, OWNER, GROUP)
        _require_other_users(root)
        yield root


def _require_other_users(root):
    if python_as(STRANGER, [], "-c", f"import os, wsa.cli; os.stat({str(root)!r})").returncode:
        pytest.skip(
            "other users cannot reach this interpreter or its files, or there is no setpriv"
        )


COLLECT = ("collect", "--game", "Pong", "--num-envs", 1, "--json", "--store")


@pytest.mark.slow
@as_root
def test_two_users_of_a_group_add_to_one_store(lab):
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
    # A command that has nothing to add needs no permission.
    again = run_as(STRANGER, [], *COLLECT, lab, "--steps", 24)
    assert again.returncode == 0 and json.loads(again.stdout)["steps"] == 0


@pytest.mark.slow
@as_root
def test_encode_runs_no_model_if_it_cannot_write(lab):
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
def test_an_existing_store_can_be_shared(lab):
    lab.chmod(0o755)
    assert run_as(OWNER, [], *COLLECT, lab, "--steps", 8).returncode == 0
    (lab / "games" / "foreign").mkdir()  # By root.
    shared = run_as(OWNER, [GROUP], "init", "--store", lab, "--shared")
    assert shared.returncode == 6 and "1 files and folders" in shared.stderr
    assert "belong to root" in shared.stderr
    (lab / "games" / "foreign").rmdir()
    assert run_as(OWNER, [GROUP], "init", "--store", lab, "--shared").returncode == 0
    assert modes(lab) == ({0o2775}, {0o664})
    assert run_as(COLLEAGUE, [GROUP], *COLLECT, lab, "--steps", 16).returncode == 0


def test_a_folder_that_cannot_be_written_is_found(store, segment, monkeypatch):
    segment(store)
    require_writable(store)
    real = os.access
    monkeypatch.setattr(os, "access", lambda p, how: Path(p).name != "segments" and real(p, how))
    with pytest.raises(StorageError, match="segments: Permission denied") as caught:
        require_writable(store)
    assert caught.value.kind == "no-permission"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--group", "lab"], "add --shared"),
        (["--shared", "--group", "no-such-group"], "no such group"),
        (["--shared", "--store", "s3://lab/wsa"], "permissions of a folder"),
    ],
)
def test_impossible_ways_to_share_are_refused(options, message, tmp_path, capsys):
    where = [] if "--store" in options else ["--store", str(tmp_path / "new")]
    assert main(["init", *where, *options]) == 2
    assert message in capsys.readouterr().err


def test_init_starts_a_store_once(tmp_path, capsys):
    for _ in range(2):
        assert main(["init", "--store", str(tmp_path / "new"), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["store"] == str(tmp_path / "new")
    assert (tmp_path / "new" / "wsa.json").is_file()


def test_a_store_is_shared_while_others_write(tmp_path, monkeypatch, capsys):
    init = ["init", "--store", str(tmp_path), "--shared", "--json"]
    assert main(init) == 0
    written = tmp_path / "tmp" / "written"
    written.parent.mkdir(exist_ok=True)
    written.touch()
    listing = list(os.walk(tmp_path))
    written.unlink()
    monkeypatch.setattr(os, "walk", lambda root: listing)
    assert main(init) == 0, capsys.readouterr().err


def test_without_a_store_and_a_home_no_folder_is_shared(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HOME", raising=False)
    mode = tmp_path.stat().st_mode
    assert main(["init", "--shared", "--store", ""]) == 2
    assert "No store is named" in capsys.readouterr().err
    assert tmp_path.stat().st_mode == mode and not list(tmp_path.iterdir())
