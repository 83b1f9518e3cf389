"""Evaluate policies on full games: returns, scores, videos, and attention weights."""
