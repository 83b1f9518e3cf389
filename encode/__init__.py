"""Frames in, committed embeddings out: models, preprocessing, one forward function, jobs.

Called, `wsa.encode(...)`, it encodes as the command does.
"""

from wsa.store.common.callable_package import make_callable

FUNCTION = "wsa.encode.commands.encode:encode_store"
make_callable(__name__)
