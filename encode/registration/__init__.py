"""Give a model its identity, choose its engine, check its probe, commit it to a store."""
