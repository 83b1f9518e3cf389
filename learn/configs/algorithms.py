"""The registry of algorithms, with the hyperparameters of each.

The same classes define the command line (`wsa learn --algo NAME`), the arguments of a learner, and
what a run's `config.json` records. To add an algorithm, write its hyperparameters here, name its
trainer in `LEARNER`, and add a line to `OFFLINE` or `ONLINE`. The trainer is imported only when it is
needed, so this file needs no torch.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Self, TypeAlias

import msgspec

from wsa.store.common import user_code
from wsa.store.common.errors import ConflictError, UsageError
from wsa.store.common.ranges import (
    COUNT,
    NOT_NEGATIVE,
    OPTIONAL_COUNT,
    POSITIVE,
    SHARE,
    Range,
    check_ranges,
)
from wsa.store.configs import Switch


class Discounting(NamedTuple):
    """How rewards add up to a target.

    Attributes:
        n_step: Number of steps whose rewards a target adds up.
        gamma: Discount per step.
        clip: Whether each reward is replaced by its sign.
    """

    n_step: int = 1
    gamma: float = 1.0
    clip: bool = False


class EvaluationConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Full games played while the run trains."""

    eval_frequency: Annotated[int, OPTIONAL_COUNT] = 0
    """Updates (online: steps) between full games, which log eval/episodic_return; 0 for never."""
    eval_episodes: Annotated[int, COUNT] = 10
    """Number of games each time."""

    def __post_init__(self) -> None:
        check_ranges(self)


class AlgorithmConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hyperparameters of every algorithm."""

    LEARNER: ClassVar[str]
    """`module:name` of the trainer: offline a `Learner`, online a function such as `train_ppo`."""
    NAME: ClassVar[str]
    """The algorithm's name in reports, and in the records of steps that a run's policy plays."""
    OUTPUT: ClassVar[Literal["values", "logits"]] = "values"
    """What the network gives for each action: its value, or the logit of a policy."""

    weight_entropy_coef: Annotated[float, NOT_NEGATIVE] = 0.0
    """Coefficient of a loss that raises the entropy of the fusion's weights."""
    load_balance_coef: Annotated[float, NOT_NEGATIVE] = 0.0
    """Coefficient of a loss that evens out how much each model is used."""

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def scheduled(self) -> bool:
        """Whether training depends on its length, so that a longer run differs from its first update."""
        return False


class OfflineConfig(AlgorithmConfig, frozen=True):
    """Hyperparameters of every offline algorithm."""

    updates: Annotated[int, COUNT] = 100_000
    """Number of gradient steps."""
    batch_size: Annotated[int, COUNT] = 32
    """Transitions in a batch."""
    learning_rate: Annotated[float, POSITIVE] = 1e-4
    """Learning rate for Adam."""
    validation_fraction: Annotated[float, Range(0, 1, below=True)] = 0.1
    """Share of the episodes held out for validation."""
    validation_frequency: Annotated[int, COUNT] = 1000
    """Gradient steps between validations."""
    save_best: Switch = False
    """Also keep the network with the best validation score; 'wsa eval' plays the final one by default."""
    log_frequency: Annotated[int, COUNT] = 100
    """Gradient steps between lines of metrics."""
    save_frequency: Annotated[int, COUNT] = 10_000
    """Gradient steps between checkpoints."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.save_best and not self.validation_fraction:
            raise UsageError("--save-best needs a --validation-fraction above 0.")

    @property
    def discounting(self) -> Discounting:
        """How rewards add up."""
        return Discounting()


class BCConfig(OfflineConfig, frozen=True, tag="bc"):
    """Behavioral cloning."""

    LEARNER = "wsa.learn.offline.bc:BC"
    NAME = "bc"
    OUTPUT = "logits"


class DQNConfig(OfflineConfig, frozen=True, tag="dqn"):
    """Double DQN (van Hasselt et al., 2016)."""

    LEARNER = "wsa.learn.offline.dqn:DQN"
    NAME = "dqn"

    gamma: Annotated[float, SHARE] = 0.99
    """Discount per step."""
    n_step: Annotated[int, COUNT] = 1
    """Number of steps in an n-step return."""
    target_network_frequency: Annotated[int, COUNT] = 1000
    """Gradient steps between copies to the target network."""
    clip_rewards: bool = True
    """Train on the sign of rewards. Reports always show raw rewards."""
    double_q: bool = True
    """Let the network choose the next action, and the target network value it.
    Otherwise, take the greatest value of the target network (Mnih et al., 2015)."""
    max_grad_norm: Annotated[float, NOT_NEGATIVE] = 0.0
    """Maximum norm of the gradients; 0 for none."""

    @property
    def discounting(self) -> Discounting:
        """How rewards add up."""
        return Discounting(self.n_step, self.gamma, self.clip_rewards)


class CQLConfig(DQNConfig, frozen=True, tag="cql"):
    """Double DQN with a conservative term for fixed data (CQL; Kumar et al., 2020)."""

    LEARNER = "wsa.learn.offline.cql:CQL"
    NAME = "cql"

    cql_alpha: Annotated[float, NOT_NEGATIVE] = 1.0
    """Weight of the conservative term."""


class OnlineConfig(AlgorithmConfig, frozen=True, tag_field="algo"):
    """Hyperparameters of every online algorithm, with CleanRL's names and values."""

    CRITIC: ClassVar[bool] = False
    """Whether the network also gives the value of a state."""
    REPLAYS: ClassVar[bool] = False
    """Whether the run keeps every step on disk, to learn from it again."""
    TWO_GROUPS: ClassVar[bool] = False
    """Whether many environments play in two groups: one plays while the other's frames are embedded."""

    total_timesteps: Annotated[int, COUNT] = 10_000_000
    """Agent steps to play, in all environments together; the emulator plays four frames per step.
    PPO rounds down to whole rollouts."""
    num_envs: Annotated[int, COUNT] = 1
    """Number of parallel environments."""
    gamma: Annotated[float, SHARE] = 0.99
    """Discount per step."""
    clip_rewards: bool = True
    """Train on the sign of rewards. Reports always show raw rewards."""
    terminal_on_life_loss: bool = False
    """Treat a lost life as the end when estimating values. The game continues; reports cover full games."""
    save_frequency: Annotated[int, COUNT] = 100_000
    """Steps between checkpoints."""

    @property
    def last_step(self) -> int:
        """Step at which a run ends: `total_timesteps`, rounded down to whole iterations."""
        return self.total_timesteps // self.num_envs * self.num_envs

    @property
    def mixes_stored(self) -> bool:
        """Whether any batch of the run contains stored data."""
        return False

    def first_update(self, settled: bool) -> int:
        """Return the step of the first update; `settled` if the normalization is known before."""
        return 0

    def settled(self) -> Self:
        """Return a copy with every default filled in, as `config.json` records it."""
        return self


class PPOConfig(OnlineConfig, frozen=True, tag="ppo"):
    """PPO (Schulman et al., 2017)."""

    LEARNER = "wsa.learn.online.ppo:train_ppo"
    NAME = "ppo"
    OUTPUT = "logits"
    CRITIC = True
    TWO_GROUPS = True

    learning_rate: Annotated[float, POSITIVE] = 2.5e-4
    """Learning rate for Adam."""
    anneal_lr: bool = True
    """Decay the learning rate linearly to 0."""
    num_envs: Annotated[int, COUNT] = 8
    """Number of parallel environments."""
    num_steps: Annotated[int, COUNT] = 128
    """Steps of each environment in a rollout."""
    num_minibatches: Annotated[int, COUNT] = 4
    """Number of minibatches that a rollout is split into."""
    update_epochs: Annotated[int, COUNT] = 4
    """Epochs over each rollout."""
    gae_lambda: Annotated[float, SHARE] = 0.95
    """Lambda of generalized advantage estimation."""
    norm_adv: bool = True
    """Normalize advantages in each minibatch."""
    clip_coef: Annotated[float, POSITIVE] = 0.1
    """Clipping range of the probability ratio."""
    anneal_clip: bool = False
    """Decay the clipping range linearly to 0."""
    clip_vloss: bool = True
    """Also clip the value loss."""
    vf_clip_coef: Annotated[float, NOT_NEGATIVE] = 0.0
    """Clipping range of the value loss; 0 for that of the probability ratio."""
    ent_coef: Annotated[float, NOT_NEGATIVE] = 0.01
    """Coefficient of the entropy bonus."""
    vf_coef: Annotated[float, NOT_NEGATIVE] = 0.5
    """Coefficient of the value loss, which is half the squared error."""
    max_grad_norm: Annotated[float, POSITIVE] = 0.5
    """Maximum norm of the gradients."""
    target_kl: Annotated[float, NOT_NEGATIVE] = 0.0
    """Stop the epochs of a rollout once the approximate KL divergence exceeds this; 0 for never."""
    recurrent: bool = False
    """Use a recurrent policy: an LSTM as wide as the fused state vector."""

    def __post_init__(self) -> None:
        super().__post_init__()
        parts = self.num_envs if self.recurrent else self.rollout_size
        if parts % self.num_minibatches:
            what = "--num-envs (whole sequences)" if self.recurrent else "--num-envs x --num-steps"
            raise UsageError(
                f"{what}, {parts}, must be a multiple of --num-minibatches, {self.num_minibatches}."
            )
        if self.norm_adv and self.rollout_size < 2 * self.num_minibatches:
            raise UsageError(
                "--norm-adv needs two steps in a minibatch: give a larger --num-steps, a smaller "
                "--num-minibatches, or --no-norm-adv."
            )
        if self.total_timesteps < self.rollout_size:
            raise UsageError(
                f"--total-timesteps {self.total_timesteps} is less than one rollout, --num-envs x "
                f"--num-steps = {self.rollout_size}."
            )

    @property
    def scheduled(self) -> bool:
        """See `AlgorithmConfig`."""
        return self.anneal_lr or self.anneal_clip

    @property
    def last_step(self) -> int:
        """See `OnlineConfig`. An iteration is a rollout."""
        return self.total_timesteps // self.rollout_size * self.rollout_size

    def first_update(self, settled: bool) -> int:
        """See `OnlineConfig`. If the first rollout gives the normalization, the second trains."""
        return self.rollout_size if settled else 2 * self.rollout_size

    @property
    def rollout_size(self) -> int:
        """Number of steps in a rollout, summed over the environments."""
        return self.num_envs * self.num_steps


class OnlineDQNConfig(OnlineConfig, frozen=True, tag="dqn"):
    """Online double DQN, optionally with a share of stored data."""

    LEARNER = "wsa.learn.online.dqn:train_dqn"
    NAME = "dqn"
    REPLAYS = True

    learning_rate: Annotated[float, POSITIVE] = 1e-4
    """Learning rate for Adam."""
    batch_size: Annotated[int, COUNT] = 32
    """Transitions in a batch."""
    buffer_size: Annotated[int, COUNT] = 1_000_000
    """Number of most recent steps that batches are drawn from."""
    learning_starts: Annotated[int, COUNT] = 80_000
    """Steps before the first update."""
    train_frequency: Annotated[int, COUNT] = 4
    """Steps between updates."""
    target_network_frequency: Annotated[int, COUNT] = 1000
    """Steps between copies to the target network."""
    n_step: Annotated[int, COUNT] = 1
    """Number of steps in an n-step return."""
    double_q: bool = True
    """Let the network choose the next action, and the target network value it.
    Otherwise, take the greatest value of the target network (Mnih et al., 2015)."""
    max_grad_norm: Annotated[float, NOT_NEGATIVE] = 0.0
    """Maximum norm of the gradients; 0 for none."""
    start_e: Annotated[float, SHARE] = 1.0
    """Probability of a random action at the start."""
    end_e: Annotated[float, SHARE] = 0.01
    """Probability of a random action at the end."""
    exploration_fraction: Annotated[float, SHARE] = 0.1
    """Share of the run over which that probability decreases."""
    offline_fraction: Annotated[float, SHARE] = 0.0
    """Share of each batch drawn from the store's data, at the start of the run."""
    offline_fraction_end: Annotated[float | None, SHARE] = None
    """The same at the end of the run; --offline-fraction if not given."""
    log_frequency: Annotated[int, COUNT] = 1000
    """Steps between lines of metrics."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.total_timesteps < self.num_envs:
            raise UsageError("--total-timesteps must be at least one step of each environment.")

    @property
    def scheduled(self) -> bool:
        """See `AlgorithmConfig`."""
        mixed = self.offline_fraction != self.last_fraction
        return self.start_e != self.end_e or mixed

    @property
    def mixes_stored(self) -> bool:
        """Whether any batch of the run contains stored data."""
        return self.offline_fraction > 0 or self.last_fraction > 0

    def first_update(self, settled: bool) -> int:
        """See `OnlineConfig`."""
        return self.learning_starts

    @property
    def last_fraction(self) -> float:
        """Share of stored data in a batch at the end of the run."""
        end = self.offline_fraction_end
        return self.offline_fraction if end is None else end

    def settled(self) -> Self:
        """Return a copy with every default filled in, as `config.json` records it."""
        return msgspec.structs.replace(self, offline_fraction_end=self.last_fraction)

    @property
    def discounting(self) -> Discounting:
        """How rewards add up."""
        return Discounting(self.n_step, self.gamma, self.clip_rewards)

    @property
    def learner(self) -> DQNConfig:
        """Hyperparameters of the offline learner, which counts updates where this class counts steps."""
        own = set(self.__struct_fields__) & set(DQNConfig.__struct_fields__)
        values: dict[str, Any] = {name: getattr(self, name) for name in own}
        frequency = max(1, self.target_network_frequency // self.train_frequency)
        values["target_network_frequency"] = frequency
        return DQNConfig(**values)

    def epsilon(self, step: int) -> float:
        """Return the probability of a random action after `step` steps."""
        done = min(1.0, step / max(1.0, self.exploration_fraction * self.total_timesteps))
        return self.start_e + done * (self.end_e - self.start_e)

    def stored_of(self, step: int) -> int:
        """Return the number of stored transitions in a batch after `step` steps."""
        done = step / self.total_timesteps
        share = self.offline_fraction + done * (self.last_fraction - self.offline_fraction)
        return round(share * self.batch_size)


OFFLINE: dict[str, type[OfflineConfig]] = {"cql": CQLConfig, "dqn": DQNConfig, "bc": BCConfig}
ONLINE: dict[str, type[OnlineConfig]] = {"ppo": PPOConfig, "dqn": OnlineDQNConfig}

if TYPE_CHECKING:
    AnyOffline: TypeAlias = OfflineConfig
    AnyOnline: TypeAlias = OnlineConfig
else:  # The types in `config.json`, which msgspec tells apart by their tags.
    AnyOffline = functools.reduce(operator.or_, OFFLINE.values())
    AnyOnline = functools.reduce(operator.or_, ONLINE.values())


def load_algorithm(name: str, recorded_in: str = "") -> type[OfflineConfig | OnlineConfig]:
    """Return the hyperparameter class of a user's own algorithm.

    Args:
        name: `module:Config`. The user must have typed it.
        recorded_in: File that names it, for messages.

    Raises:
        MissingError: If it cannot be imported, or the user did not type it.
        ConflictError: If it is not such a class, or its tag is not `name`.
    """
    found: type[AlgorithmConfig] = user_code.load_typed(
        name, AlgorithmConfig, "--algo", recorded_in
    )
    wrong = ""
    if not issubclass(found, (OfflineConfig, OnlineConfig)):
        wrong = "derive it from OfflineConfig or OnlineConfig, or from a subclass of them"
    elif found.__struct_config__.tag != name:
        wrong = f'its tag must be its name: write class ...(..., frozen=True, tag="{name}")'
    elif not user_code.is_name(getattr(found, "LEARNER", "")) or not getattr(found, "NAME", ""):
        wrong = "give it a NAME, and a LEARNER = 'module:name' that names its trainer"
    if wrong:
        raise ConflictError("user-code", f"--algo {name}: {wrong}.")
    return found  # type: ignore[return-value]  # Checked above.


def algorithms(online: bool) -> dict[str, type[OfflineConfig]] | dict[str, type[OnlineConfig]]:
    """Return the algorithms of one kind, by name."""
    return ONLINE if online else OFFLINE


def with_option(field: str) -> Iterator[tuple[str, bool]]:
    """Yield each algorithm that has a hyperparameter: its name, and whether it is online."""
    for online in (False, True):
        for name, config in algorithms(online).items():
            if field in config.__struct_fields__:
                yield name, online
