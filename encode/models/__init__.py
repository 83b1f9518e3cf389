"""The models there are: aliases, timm and hub models, user modules, the paper's own encoders."""
