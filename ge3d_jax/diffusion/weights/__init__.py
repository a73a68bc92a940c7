"""Weights from folders, single files, and the hub, with LoRA and learned words; mapping of tensor names."""
