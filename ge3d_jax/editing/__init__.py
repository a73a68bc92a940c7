"""Text-based image editing: inversion methods, attention control, and one file per method."""
