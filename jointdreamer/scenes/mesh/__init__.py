"""Triangle meshes and their differentiable rasteriser."""
