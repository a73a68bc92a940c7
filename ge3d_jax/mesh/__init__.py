"""From splats to a triangle mesh with a texture: depth fusion, marching cubes, decimation, baked colors."""
