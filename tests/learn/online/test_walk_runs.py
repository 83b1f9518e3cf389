"""Online PPO and DQN on a game of five states: they learn, repeat, and resume to the bit."""

import jaxtyping
import msgspec
import numpy as np
import pytest
import torch
from learn_kit import (
    DQN,
    NETWORK,
    PPO,
    STATES,
    WalkEncoder,
    WalkRun,
    killed_at_checkpoint,
    read_metrics,
    screens_of,
)

from wsa.learn.configs.fusions import FusionConfig
from wsa.learn.offline.dqn import DQN as OfflineDQN
from wsa.learn.training import checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

RECURRENT = msgspec.structs.replace(PPO, recurrent=True)
WINDOWS = (4, 1, 2)


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("config", "windows", "groups"),
    [
        (PPO, (1,), 2),
        (msgspec.structs.replace(DQN, n_step=3), WINDOWS, 1),
        slow(DQN, (1,), 1),
        slow(PPO, WINDOWS, 1),
        slow(RECURRENT, (1,), 2),
        slow(RECURRENT, WINDOWS, 1),
    ],
)
def test_a_killed_run_resumes_to_the_bit(tmp_path, monkeypatch, config, windows, groups):
    # An environment is replayed from the start of its stretch; here it has several of them.
    monkeypatch.setattr("wsa.learn.online.env_runner.STRETCH", 20)

    def make(name):
        return WalkRun(tmp_path / name, config, windows=windows, groups=groups)

    whole = make("whole")
    played = whole.train()
    # A distinct frame, or window, goes through its model once.
    assert played.passes == whole.encoder.passes == whole.table.asked - whole.table.known
    for window, model in whole.encoder.lookups.items():
        assert len(whole.table.parts[window]) == model.passes
    line = [line for line in read_metrics(tmp_path / "whole") if "cache/hit_rate" in line][-1]
    assert line["cache/backbone_passes"] == played.passes
    assert line["cache/hit_rate"] == 1 - played.passes / whole.table.asked

    for step in (config.save_frequency, config.total_timesteps):
        with killed_at_checkpoint(step):
            make("killed").train()
    killed = make("killed")
    torch.manual_seed(99)  # The checkpoint has the random state.
    assert 0 < killed.train().steps < config.total_timesteps
    assert read_metrics(tmp_path / "killed") == read_metrics(tmp_path / "whole")
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, killed.network.state_dict()[name]), name
    assert make("whole").train().steps == 0


@pytest.mark.parametrize("recurrent", [False, slow(True)])
def test_ppo_learns_the_walk(tmp_path, recurrent):
    size = (
        {"total_timesteps": 8192, "num_envs": 8, "learning_rate": 2e-3}
        if recurrent
        else {"total_timesteps": 2048, "num_envs": 16, "num_steps": 8, "learning_rate": 8e-3}
    )
    config = msgspec.structs.replace(PPO, recurrent=recurrent, save_frequency=10_000, **size)
    WalkRun(tmp_path, config).train()
    returns = episode_returns(tmp_path)
    assert np.mean(returns[:100]) < 2 and np.mean(returns[-100:]) > 2.8
    assert set(returns) == {0.0, 3.0}  # Raw, although it trains on signs.


@pytest.mark.slow
def test_dqn_learns_the_walk(tmp_path):
    config = msgspec.structs.replace(
        DQN, total_timesteps=6000, target_network_frequency=200, train_frequency=3, end_e=0.0,
        learning_starts=200, gamma=0.9, buffer_size=6000, log_frequency=30, save_frequency=150,
        exploration_fraction=0.5,
    )  # fmt: skip
    run = WalkRun(tmp_path, config)
    run.train()
    returns = episode_returns(tmp_path)
    assert np.mean(returns[:50]) < 2.2 and np.mean(returns[-100:]) > 2.8
    for line in read_metrics(tmp_path):
        if "charts/epsilon" in line:
            assert line["charts/epsilon"] == pytest.approx(max(0.0, 1 - line["step"] / 3000))
    embeddings = WalkEncoder()(screens_of(np.arange(STATES)))
    values = run.network(torch.from_numpy(np.stack([embeddings[1:4]] * 2, axis=1)))[0]
    assert values.argmax(dim=1).tolist() == [1, 1, 1]
    # The reward is 1 in the next step, 0.9 in the one after, 0.81 in the third.
    assert values.amax(dim=1).tolist() == pytest.approx([0.81, 0.9, 1.0], abs=0.15)


def test_dqn_logs_the_losses_of_its_last_update(tmp_path, monkeypatch):
    """The steps of lines and of updates need not coincide, before and after a checkpoint."""
    errors = []

    def update(self, step, batch):
        scalars = update_of_dqn(self, step, batch)
        errors.append(scalars["losses/td_error"].item())
        return scalars

    update_of_dqn = OfflineDQN.update
    monkeypatch.setattr(OfflineDQN, "update", update)
    config = msgspec.structs.replace(
        DQN, num_envs=1, total_timesteps=100, learning_starts=10, train_frequency=4,
        log_frequency=7, save_frequency=42,
    )  # fmt: skip
    WalkRun(tmp_path / "whole", config).train()
    lines = {
        line["step"]: line.get("losses/td_error")
        for line in read_metrics(tmp_path / "whole")
        if "charts/epsilon" in line
    }
    updates = {step: max(0, step // 4 - 2) for step in lines}  # The first is at step 12.
    assert lines == {step: errors[n - 1] if n else None for step, n in updates.items()}
    with killed_at_checkpoint(84):
        WalkRun(tmp_path / "killed", config).train()
    WalkRun(tmp_path / "killed", config).train()
    assert read_metrics(tmp_path / "killed") == read_metrics(tmp_path / "whole")


def episode_returns(folder):
    name = "charts/episodic_return"
    return [line[name] for line in read_metrics(folder) if name in line]


@pytest.mark.parametrize("config", [PPO, DQN])
def test_a_run_depends_on_its_seed_alone_and_keeps_only_what_it_needs(tmp_path, config):
    weights = {}
    for name, seed, global_seed in (("a", 1, 5), ("b", 1, 6), ("c", 2, 5)):
        run = WalkRun(tmp_path / name, config, seed=seed)
        np.random.seed(global_seed)
        run.train()
        weights[name] = torch.nn.utils.parameters_to_vector(run.network.parameters())
    a, b, c = (read_metrics(tmp_path / name) for name in "abc")
    assert a == b != c
    assert torch.equal(weights["a"], weights["b"]) and not torch.equal(weights["a"], weights["c"])
    # A line for each rollout or log interval beside one for each episode; no backbone is saved.
    assert len([line for line in a if "charts/episodic_return" not in line]) == 4
    tensors, _ = checkpoint.read(checkpoint.latest(tmp_path / "a" / "checkpoints"))
    networks = {"online"} if config is PPO else {"online", "target"}
    kinds = {name.partition(".")[0] for name in tensors}
    assert kinds == {*networks, "optimizer", "arrays", "torch_random_state"}


@pytest.mark.parametrize("config", [PPO, DQN])
def test_terminal_on_life_loss_does_not_change_the_reported_episodes(tmp_path, config):
    reported = []
    for life_loss in (False, True):
        folder = tmp_path / str(life_loss)
        # It learns nothing, so that both play the same.
        changes = {"learning_rate": 1e-30, "terminal_on_life_loss": life_loss}
        WalkRun(folder, msgspec.structs.replace(config, **changes)).train()
        keep = ("step", "charts/episodic_return", "charts/episodic_length")
        lines = [line for line in read_metrics(folder) if keep[1] in line]
        reported.append([[line[name] for name in keep] for line in lines])
    assert reported[0] == reported[1] and len(reported[0]) > 10


@pytest.mark.parametrize("config", [PPO, DQN])
def test_dropout_acts_in_updates_only(tmp_path, config):
    network = msgspec.structs.replace(NETWORK, fusion=FusionConfig(size=16, dropout=0.5))
    config = msgspec.structs.replace(config, total_timesteps=config.total_timesteps // 2)
    run = WalkRun(tmp_path, config, network=network)
    modes = set()
    run.network.torso.register_forward_hook(
        lambda module, *_: modes.add((module.training, torch.is_grad_enabled()))
    )
    run.train()
    playing, learning, targets = (False, False), (True, True), (True, False)
    # The online network chooses the best next actions for the targets of double DQN.
    assert modes == {playing, learning} | ({targets} if config.NAME == "dqn" else set())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Of torch.compile's own.
@pytest.mark.parametrize("config", [PPO, DQN, RECURRENT])
def test_a_compiled_network_acts_with_the_new_weights(tmp_path, monkeypatch, config):
    # torch.compile cannot trace the checks of shapes.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    run = WalkRun(tmp_path, config, compiled=True)
    network = run.train().network
    fresh = WalkRun(tmp_path / "fresh", config, seed=7).network
    embeddings = WalkEncoder()(screens_of(np.arange(STATES)))
    stacks = torch.from_numpy(np.stack([embeddings[[i, i + 1]] for i in range(3)]))
    more = (torch.ones(3), fresh.initial_state(3)) if fresh.recurrent else ()
    network.eval()
    fresh.eval()
    with torch.no_grad():
        for _ in range(2):
            before = fresh(stacks, *more)[0]
            fresh.load_state_dict(network.state_dict())
            wanted = fresh(stacks, *more)[0]
            torch.testing.assert_close(network(stacks, *more)[0], wanted, rtol=1e-4, atol=1e-5)
            assert not torch.allclose(before, wanted)
            for parameter in network.parameters():
                parameter += 0.1


def test_dead_rows_are_logged_for_a_fusion_that_can_die(tmp_path):
    from wsa.learn.configs.fusions import make_fusion_config

    config = msgspec.structs.replace(PPO, total_timesteps=128)
    paper = make_fusion_config(preset="paper", size=16)
    WalkRun(tmp_path, config, network=msgspec.structs.replace(NETWORK, fusion=paper)).train()
    logged = [line["wsa/dead_rows"] for line in read_metrics(tmp_path) if "wsa/dead_rows" in line]
    # The first rollout only settles the moments that embeddings are normalized with.
    assert len(logged) == 1 and 0 <= logged[0] <= 1


def test_a_run_of_an_older_wsa_still_normalizes_the_model_of_the_context(tmp_path, monkeypatch):
    WalkRun(tmp_path, PPO, windows=(1, 2)).train()
    load = checkpoint.load

    def load_old(*args):
        step, extra = load(*args)
        del extra["unsettled"]
        return step, extra

    monkeypatch.setattr(checkpoint, "load", load_old)
    resumed = WalkRun(tmp_path, PPO, windows=(1, 2))
    resumed.session._models.pop()  # The second model gives only the context.
    resumed.train()
    mean = torch.full((STATES + 2,), 7.0)
    monkeypatch.setattr(
        "wsa.learn.online.session.moments_of", lambda sample: (mean[: sample.shape[1]],) * 2
    )
    resumed.session._settled_on = 1
    resumed.session.settle(resumed.network)
    assert all((part.mean == 7).all() for part in resumed.network.torso.normalizers)
