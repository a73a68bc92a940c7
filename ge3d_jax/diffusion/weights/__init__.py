"""Weights from folders, single files and the hub, with LoRA and new words, and the mapping of their names."""
