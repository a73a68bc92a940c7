"""Timing the networks, the iteration and the rasterizer, compared with the matmul rate and with PyTorch."""
