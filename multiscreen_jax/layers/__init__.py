"""Small building blocks shared by the models: embeddings, norms, rotations, layer stacks."""
