"""`wsa study scale`: what is left of runs with fewer models, after training and while it goes on."""
