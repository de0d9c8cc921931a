"""Compiled paths. Each has a plain PyTorch twin elsewhere; all of them are optional."""
