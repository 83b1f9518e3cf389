"""Turn frames into committed embeddings: models, preprocessing, inference, jobs.

The package is callable: `wsa.encode(...)` does what the `wsa encode` command does.
"""

from wsa.store.api.callable_package import make_callable

FUNCTION = "wsa.encode.commands.encode:encode_store"
make_callable(__name__)
