"""Text-to-3D with Gaussian splats: GE3D (arXiv 2412.05929) in JAX and Flax."""
