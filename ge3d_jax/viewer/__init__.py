"""Pictures of an object for a person to look at."""
