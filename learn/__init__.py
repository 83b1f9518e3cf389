"""Play, fuse, and learn: environments, collection, fusion modules, learners, and evaluation.

The package is callable: `wsa.learn(...)` trains a run as the `wsa learn` command does.
"""

from wsa.store.api.callable_package import make_callable

FUNCTION = "wsa.learn.api.commands:learn"
make_callable(__name__)
