"""Frozen diffusion models over views: text to image, multi-view, novel view."""
