"""The distillation losses: trajectories, balancing, and view-dependent prompts."""
