"""The toy world: objects, sentences and exact pictures of them."""
