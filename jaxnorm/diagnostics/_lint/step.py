"""The lint of a training step."""

from typing import Any

from jaxnorm.diagnostics._lint.report import Report
from jaxnorm.diagnostics._lint.step_look import StepLook, TrainingStep
from jaxnorm.diagnostics._lint.step_rules import RUN_RULES, TRACED_RULES, not_finite


def lint_step(step: TrainingStep, state: Any, batch: Any) -> Report:
    """Returns what is wrong with a training step: what it leaves as it was, what it should not change, what it draws again.

    The step is traced and followed, compiled in a program of its own, and run a few times: what is given stays as it is, also
    where the step donates the buffers of its state. A step that calls Python, as `jax.debug.print` does, is not run, and the
    report says so. `python -m jaxnorm lint --rules` lists the rules.

    Args:
      step: `step(state, batch) -> (state, anything)`, as of `jaxnorm.training.make_train_step`, or written by hand, jitted or
        not. What it returns beside the state, as the loss, shows what it is made of.
      state: any pytree of arrays: parameters, state of an Optax optimizer, running statistics, keys, counters.
      batch: any pytree of arrays, the examples along their first axis; with keys that the step is given from outside.

    Returns:
      The report. Paths are those of leaves of the state, as `params/Dense_0/kernel`, or of what is returned beside it, as
      `returned/loss`.

    Raises:
      TypeError: if step is no function, or does not return a pair.
      Exception: what the step raises when it is traced, or run.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnorm.diagnostics import lint_step
      >>> def step(state, x):
      ...     kept = jax.random.bernoulli(state["key"], 0.5, x.shape)
      ...     loss, grad = jax.value_and_grad(lambda w: jnp.mean(kept * x * w))(state["w"])
      ...     return {"w": state["w"] - grad, "key": state["key"]}, loss
      >>> report = lint_step(step, {"w": jnp.ones(3), "key": jax.random.key(0)}, jnp.ones((8, 3)))
      >>> [(finding.rule, finding.severity, finding.where.path) for finding in report.findings]
      [('key-not-advanced', 'error', 'key')]
    """
    if not callable(step):
        raise TypeError(f"step must be a function step(state, batch) -> (state, anything), got {step!r}")
    look = StepLook(step, state, batch)
    findings, said = [found for rule in TRACED_RULES for found in rule(look)], []
    if look.found.callbacks:
        said.append(f"The step calls Python ({', '.join(look.found.callbacks)}) and was not run: only its program was looked at.")
    elif not look.same_shapes:
        said.append("A step changes the parts or shapes of its state: only its program was looked at.")
    elif broken := list(not_finite(look)):
        findings += broken
    else:
        findings += [found for rule in RUN_RULES for found in rule(look)]
    return Report(tuple(findings), look.norms, len(look.noises), look.found.unknown, tuple(said))
