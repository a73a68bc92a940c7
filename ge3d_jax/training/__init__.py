"""One optimization run: settings, state, the iteration, the loop around it."""
