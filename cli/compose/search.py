"""A sweep whose values Optuna chooses. Its study is stored in the sweep's folder, and continued from there."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from grouped_lm.errors import BusyError

STUDY = "study.db"
STUDY_NAME = "gvc"
ABANDONED = "abandoned_trials"
"""Attribute of the study: the trials that a killed process left, which are repeated under new numbers."""


def is_search(sweeper: Any) -> bool:
    """Return whether a composed `hydra.sweeper` chooses values itself."""
    return "optuna" in str(sweeper["_target_"])


@contextmanager
def continued_study(folder: Path, n_trials: int, seed: int, at_most: int | None = None) -> Iterator[list[str]]:
    """Lock the study in `folder`, and yield the overrides for the trials that are left, none if all are done.

    Trials that a killed process left are repeated first, with the same values, so that their jobs continue from their
    checkpoints. The sampler's seed depends on the number of trials, or it would propose the first values again.

    Args:
        folder: The folder of the sweep.
        n_trials: All trials, over every call.
        seed: The seed of the sampler.
        at_most: Trials in this call; None for all that are left.

    Raises:
        BusyError: Another process searches here.
    """
    import optuna

    folder.mkdir(parents=True, exist_ok=True)
    storage = f"sqlite:///{folder / STUDY}"
    try:
        with FileLock(folder / ".search.lock", timeout=0):
            optuna.logging.set_verbosity(optuna.logging.WARNING)
            study = optuna.create_study(storage=storage, study_name=STUDY_NAME, load_if_exists=True)
            ask_again(study)
            left = max(0, n_trials - len(ended_trials(study)))
            overrides = [
                f"hydra.sweeper.storage={storage}",
                f"hydra.sweeper.study_name={STUDY_NAME}",
                f"hydra.sweeper.n_trials={left if at_most is None else min(left, at_most)}",
                "hydra.sweeper.max_failure_rate=1.0",
                f"hydra.sweeper.sampler.seed={seed + len(study.trials)}",
            ]
            yield overrides if left else []
    except Timeout as error:
        raise BusyError(
            f"another gvc sweep searches in {folder}: wait for it, or give another hydra.sweep.dir"
        ) from error


def ask_again(study: Any) -> None:
    """Close the trials that a killed process left open, and queue their values as new trials."""
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.set_user_attr(ABANDONED, [*study.user_attrs.get(ABANDONED, []), trial.number])
        if trial.params:  # none if it was killed before it chose
            with warnings.catch_warnings(action="ignore"):  # optuna 2 calls the method experimental
                study.enqueue_trial(trial.params)
        study.tell(trial.number, state=TrialState.FAIL)


def ended_trials(study: Any) -> list[Any]:
    """Return the trials that ended, complete or failed."""
    abandoned = study.user_attrs.get(ABANDONED, [])
    return [trial for trial in study.trials if trial.state.is_finished() and trial.number not in abandoned]
