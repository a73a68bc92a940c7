"""One optimization run: settings, state, the iteration, and the training loop."""
