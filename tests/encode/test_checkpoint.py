"""Checkpoints: exact resumption, damaged files, killed writers, and stop signals."""

import os
import random
import signal
import subprocess
import time

import pytest
import torch
from torch import nn

from wsa.learn.training import checkpoint, interrupt
from wsa.store.common.errors import DamagedError, MissingError


class Learner:
    """A network and its optimizer."""

    def __init__(self, seed, width=4):
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(3, width), nn.Linear(width, 2))
        self.net.register_buffer("mean", torch.randn(3))
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=0.01, fused=True)

    def learn(self, updates):
        for _ in range(updates):
            self.optimizer.zero_grad()
            self.net(torch.randn(5, 3)).square().sum().backward()
            self.optimizer.step()

    def save(self, folder, step):
        return checkpoint.save(folder, step, {"online": self.net}, self.optimizer, {"at": [step]})

    def load(self, path):
        return checkpoint.load(path, {"online": self.net}, self.optimizer)

    def numbers(self):
        state = self.optimizer.state_dict()["state"]
        return [t.tolist() for t in self.net.state_dict().values()] + [
            {key: value.tolist() for key, value in one.items()} for one in state.values()
        ]


def test_a_loaded_learner_continues_exactly_like_the_saved_one(tmp_path):
    one, other = Learner(1), Learner(2)
    one.learn(3)
    path = one.save(tmp_path, 3)
    assert path == tmp_path / "000000003.safetensors" == checkpoint.latest(tmp_path)
    one.learn(4)
    torch.manual_seed(77)
    assert other.load(path) == (3, {"at": [3]})
    other.learn(4)  # Its batches come from torch's generator, whose state was saved.
    assert other.numbers() == one.numbers()


def test_a_network_can_be_loaded_without_its_optimizer(tmp_path):
    one, other = Learner(1), Learner(2)
    path = one.save(tmp_path, 0)
    before = torch.get_rng_state()
    assert checkpoint.load(path, {"online": other.net})[0] == 0
    assert torch.equal(torch.get_rng_state(), before)
    assert other.numbers() == one.numbers()


def test_a_tensor_may_have_been_saved_under_its_old_name(tmp_path):
    old = nn.ModuleDict({"torso": nn.ModuleDict({"normalisers": nn.Linear(2, 2)})})
    new = nn.ModuleDict({"torso": nn.ModuleDict({"normalizers": nn.Linear(2, 2)})})
    checkpoint.load(checkpoint.save(tmp_path, 1, {"online": old}), {"online": new})
    for before, after in zip(old.parameters(), new.parameters(), strict=True):
        assert torch.equal(before, after)


def test_the_newest_checkpoint_has_the_most_updates(tmp_path):
    learner = Learner(1)
    for step in (1_000_000_000, 999_999_999, 40):
        (tmp_path / f"{step:09d}.safetensors").touch()
    for name in (".000000099.safetensors.ab12", "notes.safetensors", "7.txt"):
        (tmp_path / name).touch()
    assert [int(p.stem) for p in checkpoint.all_of(tmp_path)] == [40, 999999999, 1000000000]
    assert checkpoint.latest(tmp_path).stem == "1000000000"
    learner.save(tmp_path, 5)
    assert [int(p.stem) for p in checkpoint.all_of(tmp_path)] == [5, 1000000000]


def test_a_checkpoint_that_was_removed_meanwhile_is_reported_as_gone(tmp_path):
    path = Learner(1).save(tmp_path, 1)
    for step in (2, 3):
        Learner(1).save(tmp_path, step)
    with pytest.raises(MissingError, match=r"000000001\.safetensors is gone: .* 2 newest"):
        checkpoint.read(path)


def test_the_two_newest_checkpoints_and_the_best_are_kept(tmp_path):
    learner = Learner(1)
    checkpoint.save(tmp_path, 1, {"online": learner.net}, name=checkpoint.BEST)
    for step in range(1, 5):
        learner.save(tmp_path, step)
    names = [f"{name}.safetensors" for name in ("000000003", "000000004", checkpoint.BEST)]
    assert sorted(p.name for p in tmp_path.iterdir()) == names


@pytest.mark.parametrize("exists", [True, False])
def test_a_run_without_checkpoints_is_refused(tmp_path, exists):
    folder = tmp_path if exists else tmp_path / "none"
    with pytest.raises(MissingError, match="wsa learn") as caught:
        checkpoint.latest(folder)
    assert caught.value.kind == "no-run"
    assert checkpoint.all_of(folder) == []


def damaged_versions(path):
    """Truncated, extended, zeroed, and flipped versions of a file."""
    data = path.read_bytes()
    flipped = [
        data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]
        for at in random.Random(0).sample(range(len(data)), 30)
    ]
    zeros = data[:-64] + bytes(64)
    return [b"", b"{}", data[:7], data[: len(data) // 2], data[:-1], data + b"\0", zeros, *flipped]


def test_a_damaged_checkpoint_is_refused_and_nothing_changes(tmp_path):
    learner = Learner(1)
    learner.learn(2)
    learner.save(tmp_path, 10)
    path = learner.save(tmp_path, 20)
    whole = path.read_bytes()
    for data in damaged_versions(path):
        assert data != whole
        path.write_bytes(data)
        before = {p: p.read_bytes() for p in tmp_path.iterdir()}
        other = Learner(2)
        numbers = other.numbers()
        with pytest.raises(DamagedError) as caught:
            other.load(path)
        assert caught.value.kind == "bad-bytes"
        assert str(path) in str(caught.value)
        assert "Remove it" in str(caught.value)
        assert "000000010.safetensors is then the newest" in str(caught.value)
        assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before
        assert other.numbers() == numbers
    path.unlink()  # As the message says.
    assert Learner(2).load(checkpoint.latest(tmp_path))[0] == 10


def test_if_the_only_checkpoint_is_damaged_the_run_starts_again(tmp_path):
    learner = Learner(1)
    path = learner.save(tmp_path / "run" / "checkpoints", 10)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DamagedError, match="no other") as caught:
        learner.load(path)
    assert f"{tmp_path / 'run' / 'command.txt'} starts the run again" in str(caught.value)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    path = Learner(1).save(tmp_path, 10)
    with pytest.raises(DamagedError, match="size mismatch"):
        Learner(1, width=5).load(path)


def test_a_checkpoint_is_safetensors(tmp_path):
    learner = Learner(1)
    learner.learn(1)
    data = learner.save(tmp_path, 1).read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert data[8:9] == b"{" and data[7 + length : 8 + length] in (b"}", b" ")


# It forks a process for each line that it reads, because importing torch takes seconds.
SAVE_FOREVER = """
import itertools, os, sys, torch
from pathlib import Path
from torch import nn
from wsa.learn.training import checkpoint
folder, log = map(Path, sys.argv[1:])
torch.set_num_threads(1)
os.fsync = lambda handle: None  # A kill loses nothing that the system has received.
torch.optim.Adam(nn.Linear(1, 1).parameters())  # The first one imports for a second, too.
for line in sys.stdin:
    pid = os.fork()
    if pid:
        print(pid, flush=True)
        os.waitpid(pid, 0)
        print("dead", flush=True)
        continue
    net = nn.Linear(100, 100)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for step in itertools.count(int(line) + 1):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.fill_(step)
        checkpoint.save(folder, step, {"online": net}, optimizer, {"step": step})
        log.write_text(str(step))
"""


def test_a_killed_process_leaves_the_newest_complete_checkpoint(tmp_path, warm):
    folder, log = tmp_path / "checkpoints", tmp_path / "log"
    net = nn.Linear(100, 100)
    last = 0
    generator = random.Random(0)
    process = warm.start(
        ["-c", SAVE_FOREVER, str(folder), str(log)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin and process.stdout
        for _ in range(5):
            log.write_text(str(last))
            process.stdin.write(f"{last}\n")
            process.stdin.flush()
            pid = int(process.stdout.readline())
            while log.read_text() in ("", str(last)):
                time.sleep(0.001)
            time.sleep(generator.uniform(0, 0.05))
            os.kill(pid, signal.SIGKILL)
            assert process.stdout.readline() == "dead\n"
            newest = checkpoint.latest(folder)
            step, extra = checkpoint.load(newest, {"online": net})
            assert step == extra["step"] == int(newest.stem) > last
            assert (net.weight == step).all()
            assert step >= int(log.read_text() or 0)
            last = step
        process.stdin.close()
    for path in checkpoint.all_of(folder):
        assert checkpoint.load(path, {"online": net})[0] == int(path.stem)
    left = [path.name for path in folder.iterdir() if path.name.startswith(".")]
    assert len(left) <= 1  # Each save removes the remains of a killed one.


def test_a_half_written_checkpoint_is_removed(tmp_path):
    left = tmp_path / ".000000003.safetensors.0123456789abcdef"
    left.write_bytes(b"half")
    other = tmp_path / ".keep"
    other.touch()
    Learner(1).save(tmp_path, 4)
    assert not left.exists() and other.exists()


def test_signal_handlers_are_restored():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with interrupt.StopRequest() as stop:
        assert not stop.asked
        signal.raise_signal(signal.SIGTERM)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
