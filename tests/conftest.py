"""Fixtures and settings that all tests share. Nothing here touches a network."""

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))

settings.register_profile(
    "ci",
    max_examples=15,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile("wide", settings.get_profile("ci"), max_examples=300, derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start each test from the same global random state."""
    import torch

    torch.manual_seed(0)


@pytest.fixture
def unchecked(request: pytest.FixtureRequest) -> None:
    """For messages about wrong types and shapes: with the type checker on, its error comes first."""
    if request.config.getoption("jaxtyping_packages", None):
        pytest.skip("the type checker refuses these arguments before the package can")


@pytest.fixture(scope="session")
def model() -> Any:
    """A two-layer float64 transformer with LayerNorm and biases, twelve positions."""
    from models import tiny

    return tiny()


@pytest.fixture(scope="session")
def tokens(model: Any) -> Any:
    """Six prompts of seven tokens for `model`."""
    from models import tokens_for

    return tokens_for(model)


@pytest.fixture(autouse=True)
def model_left_clean(request: pytest.FixtureRequest) -> Any:
    """A test must leave the shared model without hooks and without a wrapped forward."""
    yield
    if "model" in request.fixturenames:
        shared = request.getfixturevalue("model")
        assert "forward" not in shared.__dict__
        assert not any(point.fwd_hooks for point in shared.hook_dict.values())
