"""Training steps in six forms, with each fault that a rule of steps is for, and without."""

import functools
from collections.abc import Callable

from jaxnorm.diagnostics import Report
from lint_programs import program
from lint_programs.step_parts import Fault
from lint_programs.steps_of_flax import jaxnorm_step, linen_step, nnx_step
from lint_programs.steps_of_others import equinox_step, haiku_step, plain_step

_BUILDERS: dict[str, Callable[[Fault], Report]] = {
    "jaxnorm": jaxnorm_step,
    "linen": linen_step,
    "nnx": nnx_step,
    "haiku": haiku_step,
    "equinox": equinox_step,
    "jax": plain_step,
}


@functools.cache
def _healthy(form: str) -> Report:
    """What the lint says of a step without a fault, the healed twin of all."""
    return _BUILDERS[form]("")


_FAULTS: dict[str, tuple[Fault, dict[str, str]]] = {  # by rule: where each form has it
    "averages-not-updated": (
        "averages",
        {
            "jaxnorm": "stats",
            "linen": "batch_stats/BatchNorm_0",
            "nnx": "stats/norm",
            "haiku": "1/batch_norm",
            "equinox": "1/1",
            "jax": "averages",
        },
    ),
    "useless-parameter": (
        "parameter",
        {
            "jaxnorm": "params/skip",
            "linen": "params/Dense_0/kernel",
            "nnx": "params/other_head",
            "equinox": "0/first/weight",
            "jax": "params/layers/shift",
        },
    ),
    "key-not-advanced": (
        "key",
        {"jaxnorm": "key", "linen": "key", "nnx": "streams/drop/rngs/key", "haiku": "3", "equinox": "3", "jax": "rng"},
    ),
    "key-constant": (
        "constant",
        dict.fromkeys(("jaxnorm", "linen", "nnx", "haiku", "equinox", "jax"), "steps_of_"),
    ),
    "noise-repeated": (
        "repeated",
        {"jaxnorm": "steps_of_", "linen": "steps_of_", "nnx": "seed", "haiku": "4", "equinox": "steps_of_", "jax": "steps_of_"},
    ),
    "averages-in-optimizer": (
        "optimizer",
        {
            "jaxnorm": "params/1",
            "linen": "params/batch_stats/BatchNorm_0",
            "nnx": "stats/norm",
            "equinox": "1/1",
            "jax": "params/averages",
        },
    ),
    "state-changes-type": (
        "type",
        {
            "jaxnorm": "params/first",
            "linen": "batch_stats/BatchNorm_0",
            "nnx": "losses/0",
            "jax": "steps",
        },
    ),
    "not-finite": (
        "finite",
        {
            "jaxnorm": "returned/loss",
            "linen": "returned/loss",
            "nnx": "params/",
            "equinox": "returned",
            "jax": "params/head",
        },
    ),
}
_DEEP = {("noise-repeated", "linen"): "scan", ("averages-not-updated", "jax"): "scan"}
_DEEP |= {
    ("averages-not-updated", "equinox"): "vmap",
    ("useless-parameter", "jax"): "scan",
    ("noise-repeated", "equinox"): "vmap",
}


def _add(rule: str, fault: Fault, form: str, where: str) -> None:
    def lint(sick: bool) -> Report:
        return _BUILDERS[form](fault) if sick else _healthy(form)

    lint.__name__ = f"{form.replace('.', '_')}_step_{rule.replace('-', '_')}"
    program(rule, form, where=where, deep=_DEEP.get((rule, form), ""))(lint)


for _rule, (_fault, _places) in _FAULTS.items():
    for _form, _where in _places.items():
        _add(_rule, _fault, _form, _where)
