"""Neurons: exact fits, direct effects, logits over numbers, wrong answers, and the bag of heuristics."""
