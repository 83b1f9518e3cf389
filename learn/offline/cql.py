"""Conservative Q-learning (CQL): double DQN with a conservative term, for fixed data.

Kumar et al., 2020 (arXiv 2006.04779), equation 4 with the entropy regularizer, as a term of the
loss: alpha * (logsumexp Q - Q(a)). It keeps the values of actions that are not in the data from
diverging.
"""

from __future__ import annotations

from wsa.learn.configs.algorithms import CQLConfig
from wsa.learn.networks.heads import QNetwork
from wsa.learn.offline.dqn import DQN


class CQL(DQN):
    """CQL as a `wsa.learn.offline.trainer.Learner`."""

    def __init__(self, config: CQLConfig, network: QNetwork) -> None:
        super().__init__(config, network)
        self.cql_alpha = config.cql_alpha
