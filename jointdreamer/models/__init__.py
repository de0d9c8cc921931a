"""Pretrained networks: where their weights are, and how they are read."""
