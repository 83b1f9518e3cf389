"""Play, fuse and learn: environments, collection, fusion modules, learners and evaluation.

Called, `wsa.learn(...)`, it trains a run as the command does.
"""

from wsa.store.common.callable_package import make_callable

FUNCTION = "wsa.learn.api.commands:learn"
make_callable(__name__)
