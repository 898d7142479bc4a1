"""Prompts with numbers: which integers are one token, tasks, problems, what a model answers, pairs."""
