"""Claims of the literature as experiments: each one small file that trains, measures, and writes a table and a picture.

A file of this folder whose name does not begin with `_` is an experiment. Its docstring's first line describes it, and its
`EXPERIMENT` says what is claimed, compared and measured, and what decides (see `_experiment.py`). `python -m jaxnorm run NAME`
runs it. There is no other list of them.
"""

import ast
import difflib
import importlib
from pathlib import Path

from jaxnorm.experiments._experiment import Experiment


def experiment_names() -> tuple[str, ...]:
    """Returns the names of all experiments."""
    return tuple(sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_")))


def describe(name: str) -> str:
    """Returns an experiment's description, in a line; the experiment is not imported for it."""
    docstring = ast.get_docstring(ast.parse(Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")))
    return (docstring or "").partition("\n")[0]


def load_experiment(name: str) -> Experiment:
    """Returns an experiment.

    Raises:
      ValueError: if there is no experiment of this name.
    """
    if name not in experiment_names():
        nearest = difflib.get_close_matches(name, experiment_names(), 1, 0.0)[0]
        raise ValueError(f"unknown experiment {name!r}, the nearest is {nearest!r}; there are {', '.join(experiment_names())}")
    return importlib.import_module(f"{__name__}.{name}").EXPERIMENT
