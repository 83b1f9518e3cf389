"""What users may set when they collect, train, evaluate and look; see `wsa.encode.configs`."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from wsa.encode.configs import Engine
from wsa.learn.configs.online import OnlineOptions
from wsa.store.configs import Names, Pairs, StoreOptions


@dataclasses.dataclass(frozen=True)
class LearnOptions(OnlineOptions, StoreOptions):
    """Options of `wsa learn`."""

    game: str = "Seaquest"
    """ALE game."""
    protocol: str = ""
    """Which data, where the game was played under several protocols."""
    models: Names = ()
    """Aliases or keys. If none is named, every model that has encoded the game, or online sr, okk and
    vos, which come with wsa; but not the one that gives the context (see --context)."""
    fusion: Literal[
        "wsa", "lin", "fix", "cnn", "mix", "res", "dpa",
        "mean", "uniform", "single", "unshared", "moe", "nature",
    ] = "wsa"  # fmt: skip
    """How embeddings become one state vector: the paper's seven, and controls. nature: none, an
    end-to-end network on grey pixels (online)."""
    fusion_preset: Literal["default", "thesis", "paper"] = "default"
    """Switches of the fusion as the authors had them: their thesis, or their published code."""
    fusion_size: int = 256
    """Length of an adapted embedding; of res, of the reservoir."""
    fusion_layers: int = 1
    """Convolutions of cnn."""
    score_activation: Literal["none", "relu"] | None = None
    """What WSA's scores go through; as the preset says if not given, like the next six."""
    normaliser: Literal["softmax", "relu-sum", "sigmoid"] | None = None
    """What makes weights of scores."""
    layer_norm: bool | None = None
    """Whether adapters normalise."""
    temperature: float | None = None
    """Scores are divided by it."""
    scorer_hidden: bool | None = None
    """Whether the scorer has a hidden layer, or is one linear map."""
    dropout: float | None = None
    """Of adapted embeddings, while training."""
    weight_init: Literal["torch", "orthogonal", "small"] | None = None
    """How the fusion's weights begin."""
    context: str = ""
    """What WSA's scorer is conditioned on: the newest frame's embedding by a model, fused or not, or
    'mean' of those fused. If no models are named either, ae's, if it is there; else the mean."""
    normalize: Literal["none", "layer", "standard"] = "standard"
    """Of embeddings: by mean and deviation over the data, each by itself, or not at all."""
    hidden: Names = ("256",)
    """Units of the head's hidden layers, with commas."""
    weight_entropy_coef: float = 0.0
    """Weight of a loss that raises the entropy of the fusion's weights."""
    load_balance_coef: float = 0.0
    """Weight of a loss that evens out how much each model is used."""
    algo: Literal["cql", "dqn", "bc", "ppo"] = "cql"
    """dqn: double DQN. cql: with a conservative term, for data that is fixed. bc: imitation. ppo:
    online only."""
    updates: int = 100_000
    """Gradient steps."""
    batch_size: int = 32
    """Transitions in a batch."""
    learning_rate: float | None = None
    """Of Adam; 1e-4, with ppo 2.5e-4."""
    gamma: float = 0.99
    """Discount of a step."""
    n_step: int = 1
    """Steps whose rewards a target adds up."""
    target_network_frequency: int = 1000
    """Gradient steps between copies to the target network; online, steps played."""
    cql_alpha: float = 1.0
    """Weight of the conservative term of cql."""
    clip_rewards: bool = True
    """Train on the sign of rewards; reports are always of raw ones."""
    frame_stack: int = 4
    """Frames in a state."""
    validation_fraction: float = 0.1
    """Share of the episodes that is held out and only looked at."""
    validation_frequency: int = 1000
    """Gradient steps between looks at them."""
    save_best: bool = False
    """Keep the network that did best on them too; the final one is what eval plays."""
    init: str = ""
    """Folder of a run whose final network this one begins from, with its models and switches."""
    add: Names = ()
    """With --init: models that join, their adapters fresh."""
    drop: Names = ()
    """With --init: models that leave."""
    seed: int = 1
    """Of initialisation and draws."""
    exp_name: str = "wsa"
    """Part of the run's name."""
    run_dir: str = ""
    """The run's folder; runs/GAME__EXP_NAME__SEED__TIME if not given. One that is there continues."""
    resume: str = ""
    """Folder of a run to continue as it was begun; other options are ignored."""
    log_frequency: int | None = None
    """Gradient steps between lines of metrics, 100; online dqn: steps played, 1000."""
    save_frequency: int | None = None
    """Gradient steps between checkpoints, 10,000; online: steps played, 100,000."""
    eval_frequency: int = 0
    """Play full games every so many gradient steps, online every so many steps played, and log
    eval/episodic_return; 0 for never."""
    eval_episodes: int = 10
    """With --eval-frequency: games each time."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""
    compile: bool = False
    """Compile networks (torch.compile): minutes at first, faster updates after."""
    weights: Pairs = ()
    """Where games are played: safetensors files of models that the store does not know or that moved."""
    dry_run: Annotated[bool, arg(aliases=["-n"])] = False
    """Print what the run would be and stop."""


@dataclasses.dataclass(frozen=True)
class EvalOptions:
    """Options of `wsa eval`."""

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """Folder of a run that 'wsa learn' made."""
    episodes: int = 100
    """Games to play; and as many by a random policy, to compare with."""
    epsilon: float = 0.001
    """Probability of a random action."""
    seed: int = 10_000
    """Environment i is seeded with seed + i; apart from training's."""
    num_envs: int = 4
    """Environments side by side."""
    video: bool = False
    """Film the first environment's games into RUN/videos, the fusion's weights beside them."""
    checkpoint: Literal["final", "best"] = "final"
    """The newest network, or the one that did best on held-out episodes (learn --save-best)."""
    weights: Pairs = ()
    """Safetensors files, where this machine keeps them elsewhere than where they were encoded."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where models run."""
    engine: Engine = "auto"
    """What runs them; auto is what filled the store, if that is here."""
    json: bool = False
    """Print the result as JSON, for scripts."""
