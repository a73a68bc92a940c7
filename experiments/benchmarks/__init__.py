"""Timing the networks and the iteration, beside the device's own matmul rate and beside PyTorch."""
