"""Atari environments and the policies that play them."""
