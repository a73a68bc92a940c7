"""What can be optimized, behind one protocol."""
