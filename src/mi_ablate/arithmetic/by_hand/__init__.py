"""A transformer written by hand that adds by the Clock, and everything that is in it."""
