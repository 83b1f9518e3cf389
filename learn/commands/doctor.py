"""Check whether this machine is ready: Python, libraries, device, games, weights, store, disk."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from wsa.learn.configs.data import DoctorOptions
from wsa.learn.envs import atari
from wsa.store.backends.base import Backend
from wsa.store.backends.open import open_backend
from wsa.store.common import terminal
from wsa.store.common.cache_folder import cache_folder
from wsa.store.common.errors import MissingError, WsaError
from wsa.store.objects.root import gives_names_once, open_store, require_writable
from wsa.store.objects.snapshot import take_snapshot

LIBRARIES = ("zarr", "numcodecs", "torch", "torchvision", "timm", "dask", "gymnasium", "ale-py")
FLOORS = {"zarr": (3, 1, 6), "numcodecs": (0, 16, 6)}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the report; `ok` is None for a neutral finding, and `code` the exit code if False."""

    what: str
    ok: bool | None
    found: str
    code: int = MissingError.exit_code


def examine(store: str) -> Iterator[Finding]:
    """Check everything; the only change is a small temporary file in the store."""
    yield Finding("python", sys.version_info >= (3, 11), platform.python_version())
    yield from map(_library, LIBRARIES)
    yield _device()
    yield from _engines()
    yield _games()
    yield from _weights()
    finding = _store(store)
    yield finding
    # Do not try an unusable location a second time.
    if finding.ok is not False:
        backend = open_backend(store)
        yield _bucket(backend) if "://" in backend.url else _disk("store disk", Path(backend.url))
    yield _disk("cache disk", cache_folder())


def _library(name: str) -> Finding:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, False, f"not installed; pip install {name}")
    floor = FLOORS.get(name, ())
    if tuple(int(part) for part in version.split(".")[:3] if part.isdigit()) >= floor:
        return Finding(name, True, version)
    needed = ".".join(map(str, floor))
    return Finding(name, False, f"{version}; pip install '{name}>={needed}'")


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("device", True, torch.cuda.get_device_name(0))
    return Finding("device", None, f"CPU, {torch.get_num_threads()} threads; no GPU found")


def _engines() -> Iterator[Finding]:
    import torch

    from wsa.encode.inference import engines
    from wsa.encode.inference.encoder import choose_device

    device = torch.device(choose_device("auto"))
    for name in engines.NAMES:
        reason = engines.why_not(name, device, "fp32")
        tried = name in engines.offered(device, "fp32")
        here = "tried by --engine auto" if tried else "used only if --engine names it"
        yield Finding(f"engine {name}", None if reason else True, reason or here)


def _games() -> Finding:
    return Finding("games", True, f"{len(atari.games())} ALE games with their ROMs")


def _weights() -> Iterator[Finding]:
    from wsa.encode.models import registry

    for alias in registry.known_aliases():
        request = registry.parse_request(alias, {})
        path = registry.local_weights(request)
        where = path or "not on this machine; downloaded from the hub when first used"
        yield Finding(f"weights {alias}", True if path else None, f"{request.timm_name}: {where}")


def _store(url: str) -> Finding:
    try:
        snapshot = take_snapshot(open_store(url))
    except WsaError as error:
        ok = None if error.exit_code == MissingError.exit_code else False
        return Finding("store", ok, str(error), error.exit_code)
    games = ", ".join(snapshot.games) or "no games"
    description = f"{url}: {terminal.plural(len(snapshot.commits), 'object')}, {games}"
    try:
        if "://" not in snapshot.backend.url:
            require_writable(snapshot.backend)
    except WsaError as error:
        return Finding("store", None, f"{description}; can be read, not written: {error}")
    return Finding("store", True, description)


def _bucket(backend: Backend) -> Finding:
    try:
        once = gives_names_once(backend)
    except WsaError as error:
        return Finding("store bucket", None, f"can be listed and read, not written: {error}")
    if once:
        return Finding("store bucket", True, "can be listed; puts a file only if it is absent")
    return Finding(
        "store bucket", False, "replaces files even when told not to, so it cannot hold a store"
    )


def _disk(what: str, path: Path) -> Finding:
    existing = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    room = f"{free / 1e9:.1f} GB free at {path}"
    if what == "cache disk" and not os.access(existing, os.W_OK | os.X_OK):
        return Finding(what, False, f"{room}, where you may not write; set WSA_CACHE")
    return Finding(what, free > 1e9, room)


def doctor(o: DoctorOptions) -> int:
    """`wsa doctor`."""
    findings = list(examine(o.store))
    if o.json:
        terminal.result(True, {f.what: {"ok": f.ok, "found": f.found} for f in findings})
    else:
        marks = {True: "ok", False: "BAD", None: "-"}
        rows = [[f.what, marks[f.ok], f.found] for f in findings]
        terminal.table("", ["what", "", "found"], rows)
    return next((f.code for f in findings if f.ok is False), 0)
