"""What a person starts: generate, fit, edit, sample, show, evaluate."""
