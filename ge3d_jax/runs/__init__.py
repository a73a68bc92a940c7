"""The runs that a user starts: generate, fit, edit, sample, show, evaluate."""
