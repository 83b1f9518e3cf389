"""How many frames a state may hold; apart, since what only parses options needs no more than this."""

from __future__ import annotations

# A segment that begins inside an episode repeats this many frames less one before its first step.
MAX_STACK_FRAMES = 4
