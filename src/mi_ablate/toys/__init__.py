"""Toy transformers on modular arithmetic: tasks, training, shipped and published models."""
