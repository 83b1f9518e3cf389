"""Play, fuse and learn: environments, collection, fusion modules, learners and evaluation."""
