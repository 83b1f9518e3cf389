"""Longest frame stack, in its own module so that parsing options imports nothing else."""

from __future__ import annotations

# A segment that begins inside an episode first repeats the `MAX_STACK_FRAMES - 1` frames before it.
MAX_STACK_FRAMES = 4
