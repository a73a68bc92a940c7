"""Text-based editing of pictures: inversions, attention control, and one file a method."""
