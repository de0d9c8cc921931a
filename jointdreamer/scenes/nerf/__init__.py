"""The hash-grid NeRF and its volume renderer."""
