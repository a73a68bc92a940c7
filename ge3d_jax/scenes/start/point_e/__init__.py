"""Point-E (arXiv 2212.08751): a sentence to a cloud of colored points, as transformers over points."""
