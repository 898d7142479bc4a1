"""Forward hooks, intervention objects and fits for TransformerLens models."""
