"""The engine for embeddings: texts to vectors, in batches of what is about equally long."""
