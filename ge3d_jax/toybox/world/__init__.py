"""The Toybox world: objects, sentences that describe them, and exact images of them."""
