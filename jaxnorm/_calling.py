"""How a Flax model is called in training and in inference, and whether its layers with noise draw then."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from jaxnorm._checks import check_type, is_concrete, is_known_to_be

_TOLD_IN_TRAINING = {
    "train": True, "training": True, "is_training": True, "deterministic": False, "use_running_average": False
}  # fmt: skip
_AMOUNTS = ("rate", "dropout_rate", "beta", "std")


def flags(names: Iterable[str], train: bool) -> dict[str, bool]:
    """Returns those of these names that tell a model whether it trains, with what they then are."""
    return {name: value == train for name, value in _TOLD_IN_TRAINING.items() if name in names}


def takes(module: Any) -> frozenset[str]:
    """Returns the names of the arguments of a module's call."""
    return frozenset(inspect.signature(type(module).__call__).parameters)


def call(model: Callable[..., Any], x: Any, told: Mapping[str, Any]) -> Any:
    """Calls a model with x, or with all that is in it if it is a tuple, and says with what it raises how it was called."""
    args = x if type(x) is tuple else (x,)
    try:
        return model(*args, **told)
    except Exception as error:
        names = ", ".join(("*x" if type(x) is tuple else "x", *(f"{name}={value!r}" for name, value in told.items())))
        error.add_note(
            f"The model was called as model({names}). A tuple x is all arguments by position; training and inference are those "
            "by name."
        )
        raise


def check_arguments(training: Any, inference: Any) -> None:
    """Raises unless arguments of the call in training and in inference are given by name, both or neither."""
    if (training is None) != (inference is None):
        raise ValueError(f"training and inference must be given together, got {training!r} and {inference!r}")
    for name, given in (("training", training), ("inference", inference)):
        if given is not None:
            check_type(name, given, Mapping)


def draws(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a layer with noise draws when it is called so: by the flag of the call, else by its own."""
    asked = inspect.signature(type(module).__call__).bind(module, *args, **kwargs).arguments.get("deterministic")
    flag = module.deterministic if asked is None else asked
    return not (is_concrete(flag) and np.all(flag))


def is_idle(module: Any) -> bool:
    """Whether a layer is without noise on purpose, as of rate 0."""
    amounts = [getattr(module, name) for name in _AMOUNTS if hasattr(module, name)]
    return bool(amounts) and all(is_known_to_be(0, amount) for amount in amounts)
