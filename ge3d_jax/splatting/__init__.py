"""Gaussian splats: cameras, projection, tile rasterizer, density control."""
