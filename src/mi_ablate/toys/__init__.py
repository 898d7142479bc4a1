"""Toy transformers on modular arithmetic: tasks, training, shipped and published models, and hand-built ones."""

from .checkpoints import Toy, load, names, save
from .config import ToyConfig
from .handbuilt import analytic
from .transformer import build

__all__ = ["Toy", "ToyConfig", "analytic", "build", "load", "names", "save"]
