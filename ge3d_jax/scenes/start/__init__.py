"""What a scene begins with."""
