"""The search behind `tune`: optuna's sampler, a journal file that holds every trial, and going on from it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mi_ablate._tuning_space import Space
from mi_ablate._types import FwdHooks

Scorer = Callable[[FwdHooks], float]
_CLOSE = 1e-2
"""Of the largest: so much may scores differ that were computed again, on other threads or in other batches."""
_BROKEN = "an objective was NaN or infinite"


def searched(
    space: Space,
    scorers: dict[str, Scorer],
    search: dict[str, Any],
    trials: int,
    path: str | Path | None,
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> list[dict[str, Any]]:
    """Run the trials that are missing, and return a row for each that finished."""
    try:
        import optuna
    except ImportError as error:
        raise ImportError("tune needs optuna: pip install 'mi_ablate[tune]'.") from error
    loud = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = _study(optuna, search, path, seed)
        known = [t for t in study.get_trials(deepcopy=False) if t.values or _BROKEN in t.user_attrs]
        if len(known) < trials and space.plain not in [t.params for t in known]:
            study.enqueue_trial(space.plain)
        for done in range(len(known), trials):
            trial = study.ask()
            try:
                values = [float(score(space.hooks(space.suggest(trial)))) for score in scorers.values()]
            except BaseException:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                raise
            if torch.tensor(values).isfinite().all():
                study.tell(trial, values)
            else:
                trial.set_user_attr(_BROKEN, True)
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            if progress is not None:
                progress(done + 1, trials)
        finished = study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    finally:
        optuna.logging.set_verbosity(loud)
    if not finished:
        raise ValueError(f"All {trials} trials failed: every edit made an objective NaN or infinite.")
    return [{"trial": t.number, **dict(zip(scorers, t.values)), **t.params} for t in finished]


def _study(optuna: Any, search: dict[str, Any], path: str | Path | None, seed: int) -> Any:
    """A new search or that in the file, which must be this one; trials that an interruption cut off count as failed."""
    storage = None
    try:
        if path is not None:
            from optuna.storages import JournalStorage
            from optuna.storages.journal import JournalFileBackend

            storage = JournalStorage(JournalFileBackend(str(path)))
        directions = ["minimize"] * len(search["objectives"])
        study = optuna.create_study(storage=storage, study_name="mi_ablate", directions=directions, load_if_exists=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is no file that trials can be kept in: {error}. Give a new file in a folder that is there."
        ) from error
    before = study.user_attrs.get("search")
    differ = [key for key in search if before is not None and not _alike(before.get(key), search[key])]
    if differ:
        raise ValueError(
            f"{path} holds another search: its {', '.join(differ)} differ. Give another path for this one."
        )
    study.set_user_attr("search", search)
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.get_trials(deepcopy=False)))
    return study


def _alike(before: Any, now: Any) -> bool:
    """Whether two searches agree in something; numbers that were computed again need only be close."""
    if isinstance(before, list) and len(before) == len(now) and all(isinstance(x, float) for x in (*before, *now)):
        return all(abs(a - b) <= _CLOSE * max(map(abs, now)) for a, b in zip(before, now, strict=True))
    return bool(before == now)
