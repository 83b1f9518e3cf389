"""Train Stable-Baselines3's PPO or DQN on an Atari game, with wsa's hyperparameters.

    DIR/sb3/bin/python benchmarks/peers/sb3.py REQUEST

REQUEST is JSON: `algo`, `game`, `config` (wsa's hyperparameters, under wsa's names), and `log`, a
folder that gets one `*.monitor.csv` for each environment. Games are played under wsa's protocol
`classic`: 30 no-ops, frame skip 4, FIRE at a reset, and no end at a lost life.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def ppo(config: dict[str, Any]) -> dict[str, Any]:
    """Translate wsa's `PPOConfig` to the arguments of `stable_baselines3.PPO`."""
    rate = config["learning_rate"]
    return {
        "learning_rate": (lambda left: left * rate) if config["anneal_lr"] else rate,
        "n_steps": config["num_steps"],
        "batch_size": config["num_envs"] * config["num_steps"] // config["num_minibatches"],
        "n_epochs": config["update_epochs"],
        "gamma": config["gamma"],
        "gae_lambda": config["gae_lambda"],
        "clip_range": config["clip_coef"],
        "clip_range_vf": config["clip_coef"] if config["clip_vloss"] else None,
        "ent_coef": config["ent_coef"],
        # The value loss is the squared error here, and half of it in wsa and CleanRL.
        "vf_coef": config["vf_coef"] / 2,
        "max_grad_norm": config["max_grad_norm"],
        "normalize_advantage": config["norm_adv"],
    }


def dqn(config: dict[str, Any]) -> dict[str, Any]:
    """Translate wsa's `OnlineDQNConfig` to the arguments of `stable_baselines3.DQN`."""
    return {
        "learning_rate": config["learning_rate"],
        "buffer_size": config["buffer_size"],
        "learning_starts": config["learning_starts"],
        "batch_size": config["batch_size"],
        "gamma": config["gamma"],
        # A step of all environments counts as one here, and as `num_envs` in wsa.
        "train_freq": 1,
        "gradient_steps": config["num_envs"] // config["train_frequency"],
        "target_update_interval": config["target_network_frequency"],
        "exploration_fraction": config["exploration_fraction"],
        "exploration_initial_eps": config["start_e"],
        "exploration_final_eps": config["end_e"],
        "max_grad_norm": config["max_grad_norm"],
    }


def main(request: dict[str, Any]) -> None:
    """Train for `total_timesteps`."""
    import ale_py
    import gymnasium
    import stable_baselines3 as sb3
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import VecFrameStack

    config = request["config"]
    gymnasium.register_envs(ale_py)
    env = make_atari_env(
        f"{request['game']}NoFrameskip-v4",
        n_envs=config["num_envs"],
        seed=1,
        monitor_dir=request["log"],
        wrapper_kwargs={
            "terminal_on_life_loss": config["terminal_on_life_loss"],
            "clip_reward": config["clip_rewards"],
        },
    )
    kind, translate = {"ppo": (sb3.PPO, ppo), "dqn": (sb3.DQN, dqn)}[request["algo"]]
    model = kind("CnnPolicy", VecFrameStack(env, 4), seed=1, device="cpu", **translate(config))
    model.learn(config["total_timesteps"])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
