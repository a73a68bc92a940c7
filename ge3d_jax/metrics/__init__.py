"""Quality metrics for images and objects."""
