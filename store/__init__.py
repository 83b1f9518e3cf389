"""The shared home of frames and embeddings: numpy and zarr only, readable without torch.

`common` has what every room uses; `backends` says how bytes get there and `format` what they mean;
`objects` is what the other rooms call: writers, snapshots, the flat map. `maintenance` checks and
repairs, `exchange` brings to one store what another has.
"""
