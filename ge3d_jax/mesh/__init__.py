"""From splats to a textured triangle mesh: depth fusion, marching cubes, decimation, and color baking."""
