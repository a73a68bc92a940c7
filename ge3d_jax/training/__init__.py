"""One optimization run: settings, state, the the iteration, the loop around it."""
