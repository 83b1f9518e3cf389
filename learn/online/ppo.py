"""PPO in one file, in the style of CleanRL's `ppo_atari`.

Schulman et al., 2017 (arXiv 1707.06347), with generalized advantage estimation (GAE; Schulman et
al., 2016, arXiv 1506.02438). A rollout stores row numbers of the run's embedding table, not
embeddings or pixels. Each distinct frame goes through a model at most once, so update epochs run no
frozen model.

Environments are stepped in groups, one after the other: while the frames of one group are embedded,
the other group acts and its emulators run.

Differences from CleanRL: a truncated episode is bootstrapped from its true last frame. With
`--normalize standard`, the first rollout, by a still nearly uniform policy, only sets the mean and
standard deviation that normalize embeddings. They are set again after any later rollout by which the
embedding table has doubled (`Session.settle`), because a game's first frames are a poor sample. With
--init, they are those of that run and stay, except for models that --add adds. What the store holds
changes a run's cost, not its result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wsa.learn.configs.algorithms import PPOConfig
from wsa.learn.fusion.losses import weight_loss, weight_scalars
from wsa.learn.online.session import Played, Session
from wsa.learn.training.loop import Loop, OnLine, diverged
from wsa.learn.training.metrics import Metrics

Memory = tuple[Tensor, Tensor] | None
"""LSTM state of a recurrent policy, (1, n, d) twice; None without an LSTM."""


class Rollout(NamedTuple):
    """T steps of n environments.

    Attributes:
        stacks: Table rows of each state's k frames, (T, n, k), oldest first.
        first: 1 where an episode begins, (T, n) float32.
        actions: (T, n) int64.
        logprobs: Log-probabilities of the actions under the policy that acted, (T, n) float32.
        values: Value estimates V(s_t) by the same network, (T, n) float32.
        rewards: Rewards for training, clipped if so configured, (T, n) float32.
        terminated: 1 where no value is bootstrapped from the next state, (T, n) float32.
        ended: 1 where the episode is terminated or truncated, (T, n) float32.
        following: Values V(s'_t) of the true next states, including the last frames of truncated
            episodes, (T, n) float32.
        memory: LSTM state at the start of the rollout.
    """

    stacks: NDArray[np.int64]
    first: Tensor
    actions: Tensor
    logprobs: Tensor
    values: Tensor
    rewards: Tensor
    terminated: Tensor
    ended: Tensor
    following: Tensor
    memory: Memory


Update: TypeAlias = Callable[
    [PPOConfig, Session, nn.Module, torch.optim.Optimizer, Rollout, str], dict[str, float]
]
"""Trains the network on a rollout, and returns scalars to log: `update_policy`."""


def train_ppo(
    config: PPOConfig,
    session: Session,
    network: nn.Module,
    folder: Path,
    device: str = "cpu",
    on_line: OnLine = lambda step, line: None,
    update: Update | None = None,
) -> Played:
    """Train PPO, resuming from the newest checkpoint in `folder` if there is one.

    Args:
        session: The environments, their embedding table, and the run's state.
        network: Actor-critic that maps stacks of embeddings to logits, values, and fusion weights
            (or None); `wsa.learn.networks.recurrent.RecurrentActorCritic` if recurrent.
        update: Replaces PPO's update, for another algorithm that learns from rollouts.

    Raises:
        DamagedError: If the newest checkpoint, or the table that it refers to, is damaged.
        KeyboardInterrupt: On Ctrl-C or SIGTERM, after a checkpoint is saved.
    """
    runner, stride = session.runner, config.rollout_size
    update = update or update_policy
    network.to(device)
    optimizer = torch.optim.Adam(
        network.parameters(), lr=config.learning_rate, eps=1e-5, fused=True
    )
    memory: Memory = network.initial_state(config.num_envs) if config.recurrent else None  # type: ignore[operator]
    arrays, _ = session.resume(folder, {"online": network}, optimizer)
    if arrays and memory:
        memory = torch.from_numpy(arrays["hidden"]), torch.from_numpy(arrays["cell"])
    updates = config.last_step // stride

    def save(step: int) -> None:
        carried = {} if memory is None else {"hidden": memory[0].cpu(), "cell": memory[1].cpu()}
        session.save(folder, {"online": network}, optimizer, carried)

    with Loop(
        folder, runner.steps, config.last_step, stride=stride, save=save,
        save_frequency=config.save_frequency, on_line=on_line, evaluation=session.evaluation,
        network=network,
    ) as loop:  # fmt: skip
        for step in loop:
            remaining = 1 - (step // stride - 1) / updates
            rate = config.learning_rate * remaining if config.anneal_lr else config.learning_rate
            annealed = config
            if config.anneal_clip:
                annealed = msgspec.structs.replace(config, clip_coef=config.clip_coef * remaining)
            optimizer.param_groups[0]["lr"] = rate
            rollout, memory = collect_rollout(
                config, session, network, memory, device, loop.metrics
            )
            line = {"charts/learning_rate": rate}
            if session.settled:
                line |= update(annealed, session, network, optimizer, rollout, device)
            session.settle(network)
            loop.write(line | session.scalars())
    return session.played(network)


@torch.no_grad()
def collect_rollout(
    config: PPOConfig, session: Session, network: nn.Module, memory: Memory, device: str,
    metrics: Metrics,
) -> tuple[Rollout, Memory]:  # fmt: skip
    """Collect a rollout with the current network. Also return the LSTM state after it."""
    network.eval()  # No dropout while acting.
    runner, table = session.runner, session.table
    shape = (config.num_steps, config.num_envs)
    first, logprobs, values, rewards, terminated, ended, following = torch.zeros(7, *shape).unbind()
    actions = torch.zeros(shape, dtype=torch.int64)
    stacks = np.zeros((*shape, runner.stacks.shape[1]), np.int64)
    # LSTM state of each group of environments.
    carried = [memory and (memory[0][:, group], memory[1][:, group]) for group in runner.groups]
    for t in range(config.num_steps):
        stacks[t], first[t] = runner.stacks, torch.from_numpy(runner.first)
        for number, group in enumerate(runner.groups):
            # Gathering waits for this group's newest embeddings; the other group's run meanwhile.
            logits, value, _, carried[number] = forward(
                network, table.gather(stacks[t, group]), first[t, group], carried[number], device
            )
            # Sample on the CPU, whose torch generator is saved with the run.
            log_policy = logits.cpu().log_softmax(dim=1)
            if log_policy.isnan().any():
                raise diverged("The network's logits are not finite numbers")
            sampled = torch.multinomial(log_policy.exp(), 1)
            actions[t, group] = sampled.squeeze(1)
            logprobs[t, group] = log_policy.gather(1, sampled).squeeze(1)
            values[t, group] = value.cpu()
            if t:
                following[t - 1, group] = torch.where(
                    ended[t - 1, group] > 0, following[t - 1, group], values[t, group]
                )
            step = runner.step(actions[t, group].numpy(), number)
            rewards[t, group] = torch.from_numpy(step.rewards)
            dead = step.terminated | (step.life_lost if config.terminal_on_life_loss else False)
            terminated[t, group] = torch.from_numpy(dead).float()
            ended[t, group] = torch.from_numpy(dead | step.truncated).float()
            if step.truncated.any():
                final, not_first = table.gather(step.final), torch.zeros(len(dead))
                next_output = forward(network, final, not_first, carried[number], device)
                following[t, group] = next_output[1].cpu()
            session.log_episodes(metrics, step)
    for number, group in enumerate(runner.groups):
        now, begins = table.gather(runner.stacks[group]), torch.from_numpy(runner.first[group])
        next_output = forward(network, now, begins.float(), carried[number], device)
        following[-1, group] = torch.where(
            ended[-1, group] > 0, following[-1, group], next_output[1].cpu()
        )
    if config.clip_rewards:
        rewards = rewards.sign()
    rollout = Rollout(
        stacks, first, actions, logprobs, values, rewards, terminated, ended, following, memory
    )
    if memory is None:
        return rollout, None
    hidden, cell = zip(*(of_group for of_group in carried if of_group), strict=True)
    return rollout, (torch.cat(hidden, dim=1), torch.cat(cell, dim=1))


def forward(
    network: nn.Module, stacks: Tensor, first: Tensor, memory: Memory, device: str
) -> tuple[Tensor, Tensor, Tensor | None, Memory]:
    """Return logits, values, fusion weights, and the next LSTM state for T steps of n environments.

    Args:
        network: Actor-critic, recurrent or not.
        stacks: Embeddings, (T * n, k, width), ordered by step, then environment.
        first: 1 where an episode begins, which resets the LSTM state, (T * n,) float32.
        memory: LSTM state before the first step; None for a network without an LSTM.
    """
    if memory is None:
        return *network(stacks.to(device)), None
    memory = memory[0].to(device), memory[1].to(device)
    return network(stacks.to(device), first.to(device), memory)  # type: ignore[no-any-return]


def advantages(config: PPOConfig, rollout: Rollout) -> Tensor:
    """Compute generalized advantage estimates, (T, n).

    delta_t = r_t + gamma (1 - terminated_t) V(s'_t) - V(s_t), where s'_t is the true next state;
    A_t = delta_t + gamma lambda (1 - ended_t) A_(t+1).
    """
    bootstrap = config.gamma * (1 - rollout.terminated) * rollout.following
    deltas = rollout.rewards + bootstrap - rollout.values
    estimates = torch.zeros_like(deltas)
    next_advantage = torch.zeros_like(deltas[0])
    for t in reversed(range(len(deltas))):
        next_advantage = (
            deltas[t] + config.gamma * config.gae_lambda * (1 - rollout.ended[t]) * next_advantage
        )
        estimates[t] = next_advantage
    return estimates


def update_policy(
    config: PPOConfig,
    session: Session,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    rollout: Rollout,
    device: str,
) -> dict[str, float]:
    """Run the update epochs on a rollout. Return CleanRL's scalars and the mean fusion weights."""
    network.train()
    estimates = advantages(config, rollout)
    returns = estimates + rollout.values
    clipfracs: list[Tensor] = []
    scalars: dict[str, Tensor] = {}
    for _ in range(config.update_epochs):
        for at in minibatches(config):
            loss, scalars = loss_of(
                config, session, network, rollout, estimates, returns, at, device
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), config.max_grad_norm)
            optimizer.step()
            clipfracs.append(scalars.pop("clipfrac"))
        if config.target_kl and scalars["losses/approx_kl"] > config.target_kl:
            break
    line = session.line(scalars)
    line["losses/clipfrac"] = torch.stack(clipfracs).mean().item()
    line["losses/explained_variance"] = explained_variance(rollout.values, returns)
    return line


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """Return 1 - Var[returns - values] / Var[returns]; NaN if the returns do not vary."""
    variance = returns.var().item() if returns.numel() > 1 else 0.0
    return 1 - (returns - values).var().item() / variance if variance else float("nan")


def minibatches(config: PPOConfig) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the steps and the environments of each minibatch of one epoch, (B,) each.

    A recurrent policy's minibatches are whole rollouts of some environments, ordered by step.
    """
    if not config.recurrent:
        for part in torch.randperm(config.rollout_size).chunk(config.num_minibatches):
            yield part // config.num_envs, part % config.num_envs
        return
    for envs in torch.randperm(config.num_envs).chunk(config.num_minibatches):
        steps = torch.arange(config.num_steps).repeat_interleave(len(envs))
        yield steps, envs.repeat(config.num_steps)


def loss_of(
    config: PPOConfig,
    session: Session,
    network: nn.Module,
    rollout: Rollout,
    estimates: Tensor,
    returns: Tensor,
    at: tuple[Tensor, Tensor],
    device: str,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the PPO loss of a minibatch, and scalars to log, still on the network's device."""
    t, i = at
    stacks = session.table.gather(rollout.stacks[t.numpy(), i.numpy()])
    memory = rollout.memory
    if memory is not None:
        envs = i[: len(i) // config.num_steps]
        memory = memory[0][:, envs], memory[1][:, envs]
    logits, values, weights, _ = forward(network, stacks, rollout.first[at], memory, device)
    log_policy = logits.log_softmax(dim=1)
    logprob = log_policy.gather(1, rollout.actions[at].to(device)[:, None]).squeeze(1)
    logratio = logprob - rollout.logprobs[at].to(device)
    ratio = logratio.exp()
    advantage = estimates[at].to(device)
    if config.norm_adv:
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    clipped_ratio = ratio.clamp(1 - config.clip_coef, 1 + config.clip_coef)
    policy_loss = torch.max(-advantage * ratio, -advantage * clipped_ratio).mean()
    targets, old_values = returns[at].to(device), rollout.values[at].to(device)
    squared_errors = (values - targets) ** 2
    if config.clip_vloss:
        limit = config.vf_clip_coef or config.clip_coef
        near_values = old_values + (values - old_values).clamp(-limit, limit)
        squared_errors = torch.max(squared_errors, (near_values - targets) ** 2)
    value_loss = 0.5 * squared_errors.mean()
    entropy = -(log_policy.exp() * log_policy).sum(dim=1).mean()
    loss = policy_loss - config.ent_coef * entropy + config.vf_coef * value_loss
    loss = loss + weight_loss(config, weights)
    with torch.no_grad():
        scalars = {
            "losses/value_loss": value_loss,
            "losses/policy_loss": policy_loss,
            "losses/entropy": entropy,
            "losses/old_approx_kl": -logratio.mean(),
            "losses/approx_kl": (ratio - 1 - logratio).mean(),
            "clipfrac": ((ratio - 1).abs() > config.clip_coef).float().mean(),
            **weight_scalars(weights, network),
        }
    return loss, scalars
