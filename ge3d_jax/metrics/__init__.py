"""Quality measures of images and objects."""
