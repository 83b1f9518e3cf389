"""Training offline on the walk: resuming to the bit, signals, metrics, validation, and checks."""

import contextlib
import math
import os
import shutil
import signal

import msgspec
import numpy as np
import pytest
import safetensors
import torch
from learn_kit import read_metrics
from torch import nn

from wsa.encode.inference.encoder import Encoder
from wsa.learn.configs.algorithms import OFFLINE, BCConfig, CQLConfig
from wsa.learn.configs.fusions import FUSIONS, FusionConfig, make_fusion_config
from wsa.learn.configs.network import NetworkConfig
from wsa.learn.fusion import losses
from wsa.learn.fusion.attention import WSA
from wsa.learn.fusion.base import Inputs
from wsa.learn.fusion.build import fusion_class
from wsa.learn.offline import dqn, trainer
from wsa.learn.offline.trainer import make_learner
from wsa.learn.training import checkpoint, loop
from wsa.store.common.errors import ConflictError, DamagedError, MissingError, UsageError
from wsa.store.objects.model_spec import Output, Preprocessing

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    saved: list[int] = []
    with (
        pytest.raises(
            ConflictError, match="td_loss is nan at step 2, so the training has diverged"
        ),
        loop.Loop(tmp_path, 0, 3, save=saved.append, save_frequency=1) as steps,
    ):
        for step in steps:
            steps.write({"losses/explained_variance": math.nan})
            steps.write({"losses/td_loss": 1.0 if step == 1 else math.nan})
    assert saved == [1]


SMALL = CQLConfig(
    updates=60,
    batch_size=8,
    learning_rate=1e-3,
    target_network_frequency=7,
    validation_frequency=30,
    log_frequency=4,
    save_frequency=10,
)
NETWORK = NetworkConfig(FusionConfig(size=16), frame_stack=2, hidden=(32,))


def train(config, flat, context, seed, folder, network=NETWORK, **options):
    """Train on the walk's stored episodes."""
    shapes = tuple((network.frame_stack, *shape) for shape in flat.shapes)
    inputs = Inputs(shapes, context)
    return trainer.train_offline(config, network, flat, inputs, 3, seed, folder, **options)


def final(folder, updates=SMALL.updates):
    """Weights, target, optimizer, random states, and draws at the end, to the last bit."""
    with safetensors.safe_open(folder / "checkpoints" / f"{updates:09d}.safetensors", "np") as file:
        tensors = {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118
        assert any(name.startswith("optimizer.") for name in tensors)
        return {**tensors, **file.metadata()}


def test_the_target_network_is_copied_at_its_frequency(walk_flat, tmp_path, monkeypatch):
    seen = []
    real = dqn.update_loss

    def spy(config, online, target, *rest):
        flats = [nn.utils.parameters_to_vector(m.parameters()) for m in (online, target)]
        seen.append((flats[0].detach().clone(), flats[1].detach().clone()))
        return real(config, online, target, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(dqn, "update_loss", spy)
    train(msgspec.structs.replace(SMALL, validation_fraction=0.0), walk_flat, 0, 1, tmp_path)
    assert len(seen) == SMALL.updates
    for updates, (online, target) in enumerate(seen):
        copied = updates - updates % SMALL.target_network_frequency
        assert torch.equal(target, seen[copied][0])
        assert torch.equal(online, target) == (updates == copied)


def test_a_run_depends_on_its_seed(walk_flat, whole, tmp_path):
    same, other = tmp_path / "same", tmp_path / "other"
    for folder, seed in ((same, 1), (other, 2)):
        trained = train(SMALL, walk_flat, 0, seed, folder)
        assert (trained.updates, trained.passes) == (SMALL.updates, 0)
        assert trained.updates_per_s > 0
    assert final(same) == final(whole) != final(other)
    assert read_metrics(same) == read_metrics(whole) != read_metrics(other)


def test_a_dead_fusion_is_warned_about_and_nothing_changes(
    walk_flat, tmp_path, caplog, monkeypatch
):
    paper = msgspec.structs.replace(NETWORK, fusion=make_fusion_config(preset="paper", size=16))

    def kill(network):
        torch.nn.init.constant_(network.torso.fusion.scorer[0].bias, -1e3)

    config = msgspec.structs.replace(SMALL, updates=20)
    train(config, walk_flat, None, 1, tmp_path / "dead", paper, warm_start=kill)
    assert [line["wsa/dead_rows"] for line in read_metrics(tmp_path / "dead")] == [1.0] * 5
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "the fusion is dead" in warning and "--seed" in warning
    caplog.clear()
    train(config, walk_flat, None, 1, tmp_path / "alive", paper)
    alive = read_metrics(tmp_path / "alive")
    assert all(line["wsa/dead_rows"] < 1 for line in alive) and not caplog.records
    monkeypatch.setattr(WSA, "dead_rows", lambda self, weights: None)
    train(config, walk_flat, None, 1, tmp_path / "unwatched", paper)
    assert final(tmp_path / "alive", 20) == final(tmp_path / "unwatched", 20)
    assert [line.pop("wsa/dead_rows") is not None for line in alive] == [True] * 5
    assert alive == read_metrics(tmp_path / "unwatched")


def test_metrics_have_weights_passes_and_losses(kit, walk_flat, tmp_path):
    logged = []
    config = msgspec.structs.replace(SMALL, updates=10)
    train(config, walk_flat, None, 1, tmp_path, on_line=lambda step, _: logged.append(step))
    lines = read_metrics(tmp_path)
    assert logged == [line["step"] for line in lines] == [4, 8, 10]
    for line in lines:
        weights = [line[f"wsa/weight/{kit.key(alias)}"] for alias in ("lite0", "vit")]
        assert sum(weights) == pytest.approx(1, abs=1e-5)
        assert 0 < line["wsa/weight_entropy"] <= math.log(2) + 1e-6
        assert line["cache/backbone_passes"] == 0
        assert line["cache/backbone_passes_saved"] == line["step"] * 8 * 2 * 2
        assert line["charts/learning_rate"] == SMALL.learning_rate
        assert {"losses/td_loss", "losses/cql", "losses/q_values"} < set(line)


def test_the_speed_counts_updates_since_the_last_line(walk_flat, tmp_path, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(loop.time, "perf_counter", lambda: float(next(clock)))
    rates = []
    config = msgspec.structs.replace(SMALL, updates=10)
    train(
        config, walk_flat, None, 1, tmp_path,
        on_line=lambda _, line: rates.append(line["time/updates_per_s"]),
    )  # fmt: skip
    assert rates == [4.0, 4.0, 2.0]


class Tiny(nn.Module):
    """A backbone that averages the pixels."""

    def forward_features(self, pixels):
        return pixels

    def forward_head(self, features, pre_logits):
        return features.mean(dim=(2, 3))


def test_a_model_that_runs_meanwhile_is_counted_and_ends_nothing(walk_flat, tmp_path):
    squash = Preprocessing("squash", 8, 8, "bilinear", (0.5,) * 3, (0.5,) * 3)
    encoder = Encoder(Tiny(), squash, Output("pooled"))
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    encoder(frames)  # It does not count before the training.
    passes = []

    def on_update(step, line):
        passes.append(line["cache/backbone_passes"])
        if step == 40:
            encoder(frames)

    trained = train(SMALL, walk_flat, None, 1, tmp_path, on_line=on_update)
    assert (trained.updates, trained.passes) == (SMALL.updates, 2)
    assert passes == [0] * 11 + [2] * 5  # Lines at 4, 8, ..., and at 30, which is validated.


@pytest.fixture(scope="module")
def whole(walk_flat, tmp_path_factory):
    """A run that was not interrupted; read it only."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    train(SMALL, walk_flat, 0, 1, folder)
    torch.set_num_threads(threads)
    return folder


class Crash(Exception):
    """An exception that the trainer does not expect."""


@pytest.mark.variants
@pytest.mark.parametrize(
    "at", [4, 20, 60, *(pytest.param(n, marks=pytest.mark.slow) for n in (12, 32, 40, 52))]
)
def test_a_crashed_run_resumes_to_the_bit(walk_flat, whole, tmp_path, at):
    def crash(step, _):
        if step == at:
            raise Crash

    with pytest.raises(Crash):
        train(SMALL, walk_flat, 0, 1, tmp_path, on_line=crash)
    torch.manual_seed(99)
    trained = train(SMALL, walk_flat, 0, 1, tmp_path)
    assert trained.updates == SMALL.updates - (at - 1) // 10 * 10
    assert final(tmp_path) == final(whole)
    assert read_metrics(tmp_path) == read_metrics(whole)


def test_a_learning_rate_that_a_learner_changes_resumes(walk_flat, tmp_path, monkeypatch):
    def halving(config, network):
        learner = make_learner(config, network)
        schedule = torch.optim.lr_scheduler.ExponentialLR(learner.optimizer, 0.5 ** (1 / 20))
        update = learner.update

        def update_and_decay(step, batch):
            scalars = update(step, batch)
            schedule.step()
            return scalars

        learner.update = update_and_decay
        return learner

    def crash(step, _):
        if step == 48:
            raise Crash

    monkeypatch.setattr(trainer, "make_learner", halving)
    whole, crashed = tmp_path / "whole", tmp_path / "crashed"
    train(SMALL, walk_flat, 0, 1, whole)
    with pytest.raises(Crash):
        train(SMALL, walk_flat, 0, 1, crashed, on_line=crash)
    train(SMALL, walk_flat, 0, 1, crashed)
    assert final(crashed) == final(whole)
    assert read_metrics(crashed) == read_metrics(whole)
    rates = [line["charts/learning_rate"] for line in read_metrics(whole)]
    assert rates[-1] == pytest.approx(SMALL.learning_rate / 8)


def test_a_judge_that_validation_lacks_is_an_error(walk_flat, tmp_path, monkeypatch):
    def misjudged(config, network):
        learner = make_learner(config, network)
        learner.judge = "validation/typo"
        return learner

    monkeypatch.setattr(trainer, "make_learner", misjudged)
    for save_best in (False, True):
        config = msgspec.structs.replace(SMALL, save_best=save_best)
        refused = pytest.raises(ConflictError, match=r"'validation/typo', but .* validation/")
        with refused if save_best else contextlib.nullcontext():
            train(config, walk_flat, 0, 1, tmp_path / str(save_best))


@pytest.mark.parametrize(
    ("number", "at"),
    [
        (signal.SIGINT, 8),
        (signal.SIGTERM, 60),
        *(
            pytest.param(number, at, marks=pytest.mark.slow)
            for number, at in (
                (signal.SIGTERM, 8),
                (signal.SIGINT, 20),
                (signal.SIGTERM, 20),
                (signal.SIGINT, 60),
            )
        ),
    ],
)
def test_a_run_that_gets_a_signal_saves_and_resumes(walk_flat, whole, tmp_path, at, number):
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def ask(step, _):
        if step == at:
            os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt):
        train(SMALL, walk_flat, 0, 1, tmp_path, on_line=ask)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert (tmp_path / "checkpoints" / f"{at:09d}.safetensors").exists()
    assert train(SMALL, walk_flat, 0, 1, tmp_path).updates == SMALL.updates - at
    assert final(tmp_path) == final(whole)
    assert read_metrics(tmp_path) == read_metrics(whole)


def test_a_second_signal_stops_at_once(walk_flat, tmp_path):
    def ask_twice(step, _):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(SMALL, walk_flat, 0, 1, tmp_path, on_line=ask_twice)
    assert not (tmp_path / "checkpoints").exists()


def test_a_signal_while_a_checkpoint_is_saved_costs_nothing(
    walk_flat, whole, tmp_path, monkeypatch
):
    real = checkpoint.save

    def save(folder, step, *rest):
        path = real(folder, step, *rest)
        if step == 20:
            os.kill(os.getpid(), signal.SIGINT)
        return path

    monkeypatch.setattr(checkpoint, "save", save)
    with pytest.raises(KeyboardInterrupt):
        train(SMALL, walk_flat, 0, 1, tmp_path)
    assert (tmp_path / "checkpoints" / f"{21:09d}.safetensors").exists()
    train(SMALL, walk_flat, 0, 1, tmp_path)
    assert final(tmp_path) == final(whole)


def test_a_finished_run_does_nothing_when_it_is_started_again(walk_flat, whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}
    trained = train(SMALL, walk_flat, 0, 1, folder)
    assert (trained.updates, trained.passes) == (0, 0)
    after = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}
    assert after == before


def test_a_damaged_newest_checkpoint_is_an_error(walk_flat, whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    newest = folder / "checkpoints" / "000000060.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.raises(
        DamagedError, match=r"Remove it .*: 000000050.safetensors is then"
    ) as caught:
        train(SMALL, walk_flat, 0, 1, folder)
    assert str(newest) in str(caught.value)
    assert read_metrics(folder) == read_metrics(whole)
    newest.unlink()  # The remedy.
    assert train(SMALL, walk_flat, 0, 1, folder).updates == 10
    assert final(folder) == final(whole)
    assert read_metrics(folder) == read_metrics(whole)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"updates": 0}, "--updates must be at least 1"),
        ({"batch_size": -1}, "--batch-size must be at least 1"),
        ({"save_frequency": 0}, "--save-frequency"),
        ({"target_network_frequency": 0}, "--target-network-frequency"),
        ({"n_step": 0}, "--n-step must be at least 1"),
        ({"validation_fraction": 1.0}, "--validation-fraction must be from 0 to below 1"),
        ({"validation_frequency": 0}, "--validation-frequency must be at least 1"),
        ({"validation_fraction": 0.0, "save_best": True}, "--save-best needs"),
        ({"weight_entropy_coef": -1.0}, "--weight-entropy-coef"),
        ({"load_balance_coef": math.nan}, "--load-balance-coef"),
        ({"learning_rate": 0.0}, "--learning-rate must be positive"),
        ({"learning_rate": math.nan}, "--learning-rate must be positive"),
        ({"learning_rate": math.inf}, "--learning-rate must be positive"),
        ({"gamma": 1.1}, "--gamma must be from 0 to 1"),
        ({"cql_alpha": -0.1}, "--cql-alpha must be at least 0"),
        ({"cql_alpha": math.inf}, "--cql-alpha must be at least 0"),
    ],
)
def test_hyperparameters_out_of_range_are_refused(change, says):
    with pytest.raises(UsageError, match=says):
        msgspec.structs.replace(SMALL, **change)


SMALL_FUSIONS = {
    "wsa": FusionConfig(size=8, dropout=0.2),
    "res": FusionConfig("res", size=8),
    "dpa": FusionConfig("dpa", size=8),
    "lin": FusionConfig("lin"),
    "moe": FusionConfig("moe", size=8),
}


def long(config):
    return msgspec.structs.replace(config, updates=50, save_frequency=1, validation_frequency=20)


@pytest.mark.variants
@pytest.mark.parametrize(
    ("config", "fusion", "every"),
    [
        (long(SMALL), "wsa", 24),
        (long(BCConfig(batch_size=8, save_best=True)), "moe", 24),
        *(
            (long(config(batch_size=8)), "wsa", 24)
            for config in OFFLINE.values()
            if config not in (CQLConfig, BCConfig)
        ),
        pytest.param(
            long(msgspec.structs.replace(SMALL, cql_alpha=0.0, n_step=3)),
            "res",
            12,
            marks=pytest.mark.slow,
        ),
        pytest.param(long(BCConfig(batch_size=8)), "res", 12, marks=pytest.mark.slow),
        *(
            pytest.param(long(config), fusion, 1, marks=pytest.mark.slow)
            for config in (SMALL, BCConfig(batch_size=8))
            for fusion in SMALL_FUSIONS
        ),
    ],
)
def test_training_resumes_from_every_step(walk_flat, tmp_path, config, fusion, every, monkeypatch):
    monkeypatch.setattr(checkpoint, "KEPT", config.updates)
    network = NetworkConfig(SMALL_FUSIONS[fusion], frame_stack=2, hidden=(8,))
    train(config, walk_flat, None, 1, tmp_path / "whole", network)
    rare = msgspec.structs.replace(config, save_frequency=1000)
    for step in range(1, config.updates, every):
        name = f"{step:09d}.safetensors"
        folder = tmp_path / str(step)
        (folder / "checkpoints").mkdir(parents=True)
        shutil.copy(tmp_path / "whole" / "checkpoints" / name, folder / "checkpoints" / name)
        torch.manual_seed(step)
        trained = train(rare, walk_flat, None, 1, folder, network)
        assert trained.updates == config.updates - step
        assert final(folder, 50) == final(tmp_path / "whole", 50)
        tail = [line for line in read_metrics(tmp_path / "whole") if line["step"] > step]
        assert read_metrics(folder) == tail


def test_the_best_network_is_kept_beside_the_final_one(walk_flat, whole, tmp_path):
    config = msgspec.structs.replace(
        SMALL, validation_frequency=5, save_best=True, learning_rate=0.05
    )
    train(config, walk_flat, None, 1, tmp_path)
    errors = {line["step"]: line["validation/td_error"] for line in read_metrics(tmp_path)
              if "validation/td_error" in line}  # fmt: skip
    lowest = min(errors, key=lambda step: errors[step])
    assert lowest < SMALL.updates and len(errors) == 12
    best = checkpoint.find(tmp_path / "checkpoints", "best")
    assert int(checkpoint.read(best)[1]["step"]) == lowest
    assert checkpoint.latest(tmp_path / "checkpoints").stem == "000000060"
    with pytest.raises(MissingError, match="--save-best"):
        checkpoint.find(whole / "checkpoints", "best")


def test_values_that_run_away_are_warned_about_once(walk_flat, tmp_path, caplog):
    calm = msgspec.structs.replace(SMALL, gamma=0.9, updates=30)
    train(calm, walk_flat, None, 1, tmp_path / "calm")
    assert "diverge" not in caplog.text
    line = read_metrics(tmp_path / "calm")[-1]
    # Random walks of at most six steps from the middle; rewards count by their sign.
    assert 0.1 < line["validation/return"] < 0.9
    # Without discount, and with a target that follows at once, values grow without end.
    wild = msgspec.structs.replace(
        SMALL, gamma=1.0, cql_alpha=0.0, learning_rate=1.0, target_network_frequency=1
    )
    train(wild, walk_flat, None, 1, tmp_path / "wild")
    assert caplog.text.count("values diverge") == 1
    assert abs(read_metrics(tmp_path / "wild")[-1]["validation/max_q"]) > 3


@pytest.mark.parametrize("fusion", list(FUSIONS))
def test_a_loss_on_weights_needs_a_fusion_with_weights(fusion):
    losses.check_weight_losses(SMALL, fusion)
    for name in ("weight_entropy_coef", "load_balance_coef"):
        config = msgspec.structs.replace(SMALL, **{name: 0.1})
        if fusion_class(fusion).weighs:
            losses.check_weight_losses(config, fusion)
            continue
        with pytest.raises(UsageError, match=f"--fusion {fusion} learns none. Choose from wsa"):
            losses.check_weight_losses(config, fusion)


def test_the_entropy_loss_evens_out_the_weights(walk_flat, whole, tmp_path):
    config = msgspec.structs.replace(SMALL, weight_entropy_coef=1.0)
    train(config, walk_flat, 0, 1, tmp_path)
    plain, even = (read_metrics(f)[-1]["wsa/weight_entropy"] for f in (whole, tmp_path))
    assert even > plain and even > 0.69  # The maximum is log 2.
