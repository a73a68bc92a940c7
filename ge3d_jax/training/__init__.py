"""One optimisation run: settings, state, the jitted step, the loop around it."""
