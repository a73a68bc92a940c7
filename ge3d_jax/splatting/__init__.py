"""Gaussian splats: cameras, projection, a tile-based rasterizer, and density control."""
