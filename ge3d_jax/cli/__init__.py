"""Flags and manners that several scripts share."""
