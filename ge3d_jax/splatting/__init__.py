"""Gaussian splats: cameras, projection, a tile-based rasterizer, density control."""
