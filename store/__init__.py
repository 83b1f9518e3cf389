"""The shared home of frames and embeddings: numpy and zarr only, readable without torch.

Read in this order: `errors`, `names`, `keys`, `records` say what is stored; `backends`, `local`,
`publish`, `remote`, `bucket` say how bytes get there; `layout` says what the bytes mean; `writer`, `reader`, `index`
and `flat` are what the other rooms call; `verify` checks every byte; `sync` brings to one store what
another has; `export` writes plain arrays for people without wsa.
"""
