"""Toy transformers on modular arithmetic: tasks, training, shipped and published models."""

from .checkpoints import Toy, load, names, save
from .config import ToyConfig
from .transformer import build

__all__ = ["Toy", "ToyConfig", "build", "load", "names", "save"]
