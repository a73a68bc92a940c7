"""The distillation losses: trajectories, balancing, view-dependent prompts."""
