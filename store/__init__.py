"""The store of frames and embeddings: numpy and Zarr only, readable without torch.

`common` has what every package uses. `backends` reads and writes bytes, and `format` defines what
they mean. `encode` and `learn` call `objects`: writers, snapshots, the flat map. `maintenance` checks
and repairs a store, and `exchange` copies between stores.
"""
