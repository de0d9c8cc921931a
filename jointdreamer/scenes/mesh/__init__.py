"""Triangle meshes as scenes: tetrahedral grids, a differentiable rasteriser, textures."""
