"""The user-facing runs: generate, fit, edit, sample, show, evaluate."""
