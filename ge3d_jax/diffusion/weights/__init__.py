"""Weights from folders, single files and the hub, with LoRA and new words; where each tensor goes."""
