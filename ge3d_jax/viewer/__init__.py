"""Images and web pages that show an object."""
