"""What users may set of online learning; part of `wsa.learn.configs.learn.LearnOptions`."""

from __future__ import annotations

import dataclasses

from wsa.encode.configs import Engine


@dataclasses.dataclass(frozen=True)
class OnlineOptions:
    """Options of `wsa learn --online`. Where none is given, the algorithm's own holds."""

    online: bool = False
    """Learn while playing, with --algo ppo or dqn; models not in the store yet are added."""
    total_timesteps: int = 10_000_000
    """Online: agent steps to play, in all environments; an emulator plays four frames in each."""
    num_envs: int | None = None
    """Online: environments side by side; ppo 8, dqn 1."""
    max_episode_steps: int = 27_000
    """Online: steps after which an episode is truncated."""
    terminal_on_life_loss: bool = False
    """Online: value nothing beyond a lost life. The game goes on, and reports are of whole games."""
    record: bool = False
    """Online: keep what is played in the store, with its embeddings."""
    parameters: int = 0
    """With --fusion nature: about how many the network has; 0 for CleanRL's widths."""
    output: str = ""
    """Online: of models that the store does not have yet; what is not given is as of 'wsa encode'."""
    engine: Engine = "auto"
    """Where games are played: what runs the models; auto is what filled the store, if that is here."""
    encoder: str = ""
    """Online: tcp://HOST:PORT of a Dask scheduler whose workers embed what is not in the store."""
    num_steps: int = 128
    """ppo: steps of each environment in a rollout."""
    anneal_lr: bool = True
    """ppo: let the learning rate fall to 0."""
    gae_lambda: float = 0.95
    """ppo: lambda of the advantages."""
    num_minibatches: int = 4
    """ppo: parts that a rollout is cut into."""
    update_epochs: int = 4
    """ppo: times that it is gone through."""
    norm_adv: bool = True
    """ppo: normalise advantages in each minibatch."""
    clip_coef: float = 0.1
    """ppo: how far a probability ratio counts."""
    clip_vloss: bool = True
    """ppo: clip the value loss alike."""
    ent_coef: float = 0.01
    """ppo: weight of the entropy."""
    vf_coef: float = 0.5
    """ppo: weight of the value loss."""
    max_grad_norm: float = 0.5
    """ppo: gradients are cut to this norm."""
    target_kl: float = 0.0
    """ppo: end the epochs once the policy has moved so far; 0 for never."""
    recurrent: bool = False
    """ppo: a policy with a memory, an LSTM as wide as the fused state vector."""
    buffer_size: int = 1_000_000
    """Online dqn: newest steps that batches are drawn from."""
    start_e: float = 1.0
    """Online dqn: probability of a random action at first."""
    end_e: float = 0.01
    """Online dqn: and at last."""
    exploration_fraction: float = 0.1
    """Online dqn: share of the run in which it falls."""
    learning_starts: int = 80_000
    """Online dqn: steps before the first update."""
    train_frequency: int = 4
    """Online dqn: steps between updates."""
    offline_fraction: float = 0.0
    """Online dqn: share of each batch that is data of the store, at the run's begin."""
    offline_fraction_end: float | None = None
    """Online dqn: and at its end; the same if not given."""
