"""Pictures of an object for people to look at."""
