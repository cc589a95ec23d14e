"""What frozen networks make of the data, computed once and kept: latents, text embeddings, a teacher's samples."""
