"""The Toybox world: objects, sentences about them, and exact pictures of them."""
