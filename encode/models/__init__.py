"""Frozen models: aliases, timm and hub models, user modules, and the paper's own encoders."""
