"""The prediction of removal curves as a study: its errors, its registration and its verdict, on planted runs."""

import pytest

from mi_ablate.studies.registration import register


def test_too_few_runs_are_no_fit():
    with pytest.raises(ValueError, match="too few to fit a prediction on: at least three are needed"):
        register([])
