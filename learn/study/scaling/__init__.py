"""`wsa study scale`: runs with fewer models, after training and during it."""
