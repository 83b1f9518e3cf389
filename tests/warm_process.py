"""Interpreters that start in 0.1 CPU s: forks of a parent that has imported torch, timm, and wsa.

`Nursery().start([...])` takes what would follow `python` on a command line (`-m wsa.cli list`,
`-c CODE a b`, `script.py a b`) and returns a `WarmProcess`, which works like `subprocess.Popen`.
The parent has one thread. A child ends as an interpreter does: it joins other threads, runs exit
hooks, turns `SystemExit` into an exit code, writes a traceback to standard error, and dies by the
signal of an uncaught Ctrl-C.

It differs from a real interpreter in four ways: modules are imported already, so what they read
from the environment at import (`HF_HOME`, `OMP_NUM_THREADS`) is the parent's; interpreter options
(`-W`, `-B`, `PYTHONUNBUFFERED`) do not work; objects are not destroyed at the end; and it cannot
test imports.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn, Self

# What `wsa encode`, `learn`, `eval`, `collect`, and the verbs of the store import.
MODULES = (
    "numpy", "torch", "torch._dynamo", "timm", "torchvision", "distributed", "gymnasium", "ale_py", "cv2",
    "tyro", "torch.utils.tensorboard", "wsa.cli", "wsa.encode.jobs.tasks", "wsa.encode.commands.encode",
    "wsa.encode.service.service", "wsa.learn.commands.learn", "wsa.learn.commands.collect",
    "wsa.learn.runs.train", "wsa.learn.runs.evaluate", "wsa.store.commands.share",
)  # fmt: skip
# As in the tests' own process: OpenVINO takes seconds to convert a model.
PRELUDE = """
from wsa.encode.inference import engines
offered = engines.offered
engines.offered = lambda *how: [name for name in offered(*how) if name != "openvino"]
"""
# A parent with more than one thread cannot be forked safely.
ALONE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class WarmProcess:
    """Like `subprocess.Popen`; a child of the nursery, which reports how it ended."""

    def __init__(
        self,
        arguments: Sequence[str],
        pid: int,
        ending: socket.socket,
        files: Sequence[IO[Any] | None],
    ) -> None:
        self.args, self.pid = arguments, pid
        self.stdin, self.stdout, self.stderr = files
        self.returncode: int | None = None
        self.cpu_s: float | None = None
        self._ending = ending
        self._readers: list[threading.Thread] | None = None
        self._outputs: dict[str, Any] = {"stdout": None, "stderr": None}

    def poll(self) -> int | None:
        """The exit code if it has ended, negative for a signal."""
        if self.returncode is None and select.select([self._ending], [], [], 0)[0]:
            self._end()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it ends; returns the exit code."""
        if self.returncode is None:
            if not select.select([self._ending], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(list(self.args), timeout or 0)
            self._end()
        assert self.returncode is not None
        return self.returncode

    def _end(self) -> None:
        status = self._ending.recv(100)
        if not status:
            raise RuntimeError(f"the nursery of process {self.pid} is gone")
        code, cpu = status.split()
        self.returncode, self.cpu_s = int(code), float(cpu)
        self._ending.close()

    def communicate(self, input: Any = None, timeout: float | None = None) -> tuple[Any, Any]:
        """Write `input`, read both outputs to their ends, and wait for the exit."""
        end = None if timeout is None else time.monotonic() + timeout
        if self.stdin and not self.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                if input:
                    self.stdin.write(input)
                self.stdin.close()
        if self._readers is None:
            self._readers = [
                threading.Thread(target=self._read, args=(name,), daemon=True)
                for name in self._outputs
                if getattr(self, name) and not getattr(self, name).closed
            ]
            for reader in self._readers:
                reader.start()
        for reader in self._readers:
            reader.join(None if end is None else max(0.0, end - time.monotonic()))
            if reader.is_alive():
                raise subprocess.TimeoutExpired(list(self.args), timeout or 0)
        self.wait(None if end is None else max(0.0, end - time.monotonic()))
        return self._outputs["stdout"], self._outputs["stderr"]

    def _read(self, name: str) -> None:
        with getattr(self, name) as file:
            self._outputs[name] = file.read()

    def send_signal(self, number: int) -> None:
        """Send a signal, if the process still runs."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (self.stdin, self.stdout, self.stderr):
            if file:
                with contextlib.suppress(BrokenPipeError):
                    file.close()
        self.wait()


class Nursery:
    """The warm parent, a process of one thread, which ends with the session.

    Args:
        modules: What it imports before it forks.
        prelude: Code that it runs then, such as the patches of `tests/conftest.py`.
    """

    def __init__(self, modules: Sequence[str], prelude: str) -> None:
        local, remote = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket = local
        with remote:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(remote.fileno()), prelude, *modules],
                pass_fds=[remote.fileno()],
                env={**os.environ, **ALONE},
                start_new_session=True,  # Ctrl-C at a terminal is for the tests.
            )
        self._ready = False

    def start(
        self,
        arguments: Sequence[str],
        *,
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: Any = None,
        stdout: Any = None,
        stderr: Any = None,
        text: bool = False,
        start_new_session: bool = False,
    ) -> WarmProcess:
        """Fork a child that does what `python ARGUMENTS` would do."""
        if not self._ready:
            assert self._socket.recv(10) == b"ready", "the nursery could not start"
            self._ready = True
        handles: list[int] = []
        close: list[int] = []
        files: list[IO[Any] | None] = []
        for at, wanted in enumerate((stdin, stdout, stderr)):
            file = None
            if wanted == subprocess.PIPE:
                reading, writing = os.pipe()
                handle, kept = (reading, writing) if at == 0 else (writing, reading)
                file = os.fdopen(kept, ("w" if at == 0 else "r") + ("" if text else "b"))
                close.append(handle)
            elif wanted == subprocess.DEVNULL or (wanted is None and at == 0):
                close.append(handle := os.open(os.devnull, os.O_RDWR))
            elif wanted == subprocess.STDOUT:
                handle = handles[1]
            elif wanted is None:
                handle = at  # The tests' own.
            else:
                handle = wanted if isinstance(wanted, int) else wanted.fileno()
            handles.append(handle)
            files.append(file)
        local, remote = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        question = {
            "arguments": [str(argument) for argument in arguments],
            "cwd": str(cwd or Path.cwd()),
            "env": dict(os.environ if env is None else env),
            "session": start_new_session,
        }
        with remote:
            message = [json.dumps(question).encode()]
            socket.send_fds(self._socket, message, [*handles, remote.fileno()])
        for handle in close:
            os.close(handle)
        pid = int(local.recv(20))
        return WarmProcess(arguments, pid, local, files)

    def run(
        self,
        arguments: Sequence[str],
        *,
        input: Any = None,
        timeout: float | None = None,
        check: bool = False,
        capture_output: bool = False,
        **options: Any,
    ) -> subprocess.CompletedProcess[Any]:
        """Like `subprocess.run`."""
        if capture_output:
            options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        if input is not None:
            options["stdin"] = subprocess.PIPE
        process = self.start(arguments, **options)
        try:
            out, err = process.communicate(input, timeout)
        except BaseException:
            process.kill()
            process.wait()
            raise
        ended = subprocess.CompletedProcess(list(arguments), process.wait(), out, err)
        if check:
            ended.check_returncode()
        return ended

    def close(self) -> None:
        """End it; running children go on, as those of a shell."""
        self._socket.close()
        self._process.wait()


# The parent's side.


def _become(question: dict[str, Any], handles: list[int], server: socket.socket) -> None:
    """Become an interpreter, with its files, folder, environment, signals, and arguments."""
    server.close()
    if question["session"]:
        os.setsid()
    safe = [os.dup(handle) for handle in handles[:3]]
    for at, handle in enumerate(safe):
        os.dup2(handle, at)  # Which makes it inheritable.
    for handle in (*safe, *(h for h in handles if h > 2)):
        with contextlib.suppress(OSError):
            os.close(handle)
    os.environ.clear()
    os.environ.update(question["env"])
    os.chdir(question["cwd"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False, errors="backslashreplace")  # noqa: SIM115
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    more = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[1:1] = [path for path in more if path not in sys.path]
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()  # `random` does so itself.
    sys.orig_argv = [sys.executable, *question["arguments"]]
    first, *rest = question["arguments"]
    if first == "-m":
        import runpy

        sys.path[0] = question["cwd"]
        sys.argv = rest
        sys.modules.pop(rest[0], None)  # As `python -m`, which knows it as `__main__` only.
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        return
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    module.__dict__["__builtins__"] = __builtins__
    if first == "-c":
        sys.path[0] = ""
        sys.argv = ["-c", *rest[1:]]
        code = compile(rest[0], "<string>", "exec")
    else:
        sys.path[0] = str(Path(first).resolve().parent)
        sys.argv = [first, *rest]
        module.__dict__["__file__"] = first
        code = compile(Path(first).read_text(), first, "exec")
    exec(code, module.__dict__)  # noqa: S102


def _leave(work: Callable[[], object]) -> NoReturn:
    """Do the work and end as an interpreter does, but do not destroy objects.

    That would write to every page that is shared with the parent, and take 0.4 of 0.5 CPU s.
    """
    code, by_interrupt = 0, False
    try:
        work()
    except SystemExit as stop:
        if stop.code is not None and not isinstance(stop.code, int):
            print(stop.code, file=sys.stderr)
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException as error:  # noqa: BLE001
        by_interrupt = isinstance(error, KeyboardInterrupt)
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]  # Other threads end first.
    atexit._run_exitfuncs()
    for file in (sys.stdout, sys.stderr):
        try:
            file.flush()
        except OSError:
            code = 120
    if by_interrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code & 0xFF)


def _serve(handle: int, prelude: str, modules: Sequence[str]) -> None:
    server = socket.socket(fileno=handle)
    server.set_inheritable(False)
    for module in modules:
        importlib.import_module(module)
    exec(prelude, {})  # noqa: S102
    threads = list(Path("/proc/self/task").iterdir())
    assert len(threads) == 1, f"an import started {len(threads) - 1} threads"
    gc.collect()
    gc.freeze()  # Children share these pages for longer.
    server.send(b"ready")
    endings: dict[int, tuple[int, socket.socket]] = {}
    waiting = select.poll()
    waiting.register(server, select.POLLIN)
    while True:
        for ready, _ in waiting.poll():
            if ready in endings:
                pid, ending = endings.pop(ready)
                _, status, used = os.wait4(pid, 0)
                with contextlib.suppress(OSError), ending:
                    cpu = used.ru_utime + used.ru_stime
                    ending.send(f"{os.waitstatus_to_exitcode(status)} {cpu}".encode())
                waiting.unregister(ready)
                os.close(ready)
                continue
            message, handles, _, _ = socket.recv_fds(server, 1 << 20, 8)
            if not message:
                return
            pid = os.fork()
            if not pid:
                for watched, (_, ending) in endings.items():
                    os.close(watched)
                    ending.close()
                _leave(functools.partial(_become, json.loads(message), handles, server))
            for one in handles[:-1]:
                os.close(one)
            ending = socket.socket(fileno=handles[-1])
            ending.send(str(pid).encode())
            watched = os.pidfd_open(pid)
            waiting.register(watched, select.POLLIN)
            endings[watched] = (pid, ending)


@contextlib.contextmanager
def warm_parent(modules: Sequence[str] = MODULES, prelude: str = PRELUDE) -> Iterator[Nursery]:
    """A nursery that ends with the session."""
    nursery = Nursery(modules, prelude)
    try:
        yield nursery
    finally:
        nursery.close()


if __name__ == "__main__":
    _serve(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
