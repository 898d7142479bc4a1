"""Heads and MLPs on the way to the answer: effects, roles, smallest sets, paths, the number lens."""
