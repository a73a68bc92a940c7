"""How good a picture or an object is."""
