"""Attention and tokens of one prompt, before and after an edit: what ``mi-ablate attention`` runs, and its page."""

from mi_ablate.attention_view.run import View, view

__all__ = ["View", "view"]
