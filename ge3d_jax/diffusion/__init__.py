"""Stable Diffusion as pure functions: UNet, VAE, text encoder, DDIM, checkpoints."""
