"""What every training shares: the loop, checkpoints, metrics, interruption."""
