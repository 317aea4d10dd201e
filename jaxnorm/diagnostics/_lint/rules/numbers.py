"""Rules about numbers and their types."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm.diagnostics._lint.look import Look
from jaxnorm.diagnostics._lint.program import leaf_paths
from jaxnorm.diagnostics._lint.records import Norm
from jaxnorm.diagnostics._lint.report import Finding, Severity, Where
from jaxnorm.diagnostics._lint.rules._rule import rule

_ROUNDING = {16: 2.0**-8, 32: 2.0**-23, 64: 2.0**-52}  # relative, by the bits of a type; of 16 bits that of bfloat16
_NO_VARIANCE = 1e-12  # of the squared mean: what rounding leaves of a constant in float32 is below


@rule
def not_finite(look: Look) -> Iterator[Finding]:
    """An output or a new running average is NaN or infinite, or what the model is given is.

    The loss and all gradients are too then, and a running average stays so for ever. What else the report says of what they are
    computed from or of what is computed of them means nothing.

    Sick:
      y = x / jnp.std(x, axis=0)  # 0 / 0 in a channel that never varies

    Healed:
      y = x * jax.lax.rsqrt(jnp.var(x, axis=0) + 1e-5)
    """
    model = look.model
    given = _not_finite_shares({"params": model.params, "stats": model.stats, "x": model.x})
    for path, share in given.items():
        why = f"{share:.0%} of it is not finite as it is given, and so is all that is computed of it"
        yield Finding(
            "not-finite", "error", Where(path, ""), why, "look for the step or the file that it comes from", {"share": share}
        )
    for mode, program in (("training", look.training), ("inference", look.inference)):
        shares = _not_finite_shares({"outputs": program.usual.outputs, "stats": program.usual.stats})
        if shares and not given:
            path, share = next(iter(shares.items()))
            why = f"{share:.0%} of {path} is not finite in {mode}: what is computed of it means nothing"
            fix = "keep it where the function is defined: `sqrt(maximum(x, 0))`, `log(x + 1e-6)`, `x / (norm + 1e-6)`"
            yield Finding("not-finite", "error", program.first_nan or Where(path, ""), why, fix, {"share": share})
            return


def _not_finite_shares(trees: Mapping[str, Any]) -> dict[str, float]:
    """Returns by path which share of a leaf is not finite, for those of which something is not."""
    shares = {}
    for name, tree in trees.items():
        for path, leaf in zip(leaf_paths(name, tree), jax.tree.leaves(tree), strict=True):
            if np.size(leaf) and jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
                shares[path] = float(np.mean(~np.isfinite(np.asarray(leaf))))
    return {path: share for path, share in shares.items() if share}


@rule
def state_changes_type(look: Look) -> Iterator[Finding]:
    """The new running statistics have other shapes or types than the old ones, or are another tree.

    The next step is compiled anew, and where a shape grows so is every other; `lax.scan` over steps and a checkpoint's loading
    refuse them.

    Sick:
      stats = {"steps": jnp.array(0)}  # then {"steps": stats["steps"] + 1.0}

    Healed:
      stats = {"steps": jnp.array(0.0)}
    """
    old, new = look.model.stats, look.training.shapes[1]
    if jax.tree.structure(old) != jax.tree.structure(new):
        why = (
            f"a step gives another tree of statistics than it is given: {jax.tree.structure(old)}, then {jax.tree.structure(new)}"
        )
        yield Finding("state-changes-type", "warning", Where("stats", ""), why, "return statistics in the tree that was given")
        return
    for path, before, after in zip(leaf_paths("stats", old), jax.tree.leaves(old), jax.tree.leaves(new), strict=True):
        before = jax.typeof(before)
        if (before.shape, before.dtype) == (after.shape, after.dtype):
            continue
        severity: Severity = "warning" if before.shape == after.shape else "error"
        why = f"{before.dtype}{list(before.shape)} becomes {after.dtype}{list(after.shape)} in a step: the next is compiled anew"
        fix = f"begin with {after.dtype}, or return `new.astype(old.dtype)`" if severity == "warning" else "keep its shape"
        yield Finding("state-changes-type", severity, Where(path, ""), why, fix)


@rule
def half_precision_statistics(look: Look) -> Iterator[Finding]:
    """The mean or the variance of a norm is computed or held in 16 bits.

    Each is rounded to 1 part in 256 (bfloat16) or 2,048 (float16, where squares above 65,504 are infinite), and an average that
    moves by less than that stands still. Data may have 16 bits; statistics need 32, and cost nothing.

    Sick:
      nn.BatchNorm(use_running_average=not train, dtype=jnp.bfloat16, force_float32_reductions=False)

    Healed:
      nn.BatchNorm(use_running_average=not train, dtype=jnp.bfloat16)
    """
    fixes = {
        "linen": "leave out force_float32_reductions=False",
        "haiku": "give it x.astype(jnp.float32), and round what it returns",
    }
    for norm in look.training.found.norms:
        if norm.kind != "averages" and 0 < norm.bits <= 16:
            why = f"its statistics are held in {norm.bits} bits, so that they are rounded to 3 digits at best"
            fix = fixes.get(norm.library, "compute mean and variance of x.astype(jnp.float32)")
            yield Finding("half-precision-statistics", "warning", norm.where, why, fix, {"bits": norm.bits})


@rule
def cancelling_variance(look: Look) -> Iterator[Finding]:
    """A variance is `E[x^2] - E[x]^2`, and the mean of what enters is so large that their difference is mostly rounding.

    Both terms are rounded to `u = 2^-23` of themselves in float32, so that the relative error of what is divided by is about
    `u mean^2 / (var + epsilon)`, up to a few times that where many are summed: a note from 0.1 %, a warning from 1 %, an error
    from 30 %, where the difference may be negative as well. A channel that never varies loses nothing. The worst channel is
    judged; of a norm within examples, the example in the middle.

    Sick:
      nn.BatchNorm(use_running_average=not train)(1000.0 + x)

    Healed:
      nn.BatchNorm(use_running_average=not train, use_fast_variance=False)(1000.0 + x)
    """
    fixes = {"linen": "use_fast_variance=False", "nnx": "use_fast_variance=False"}
    for norm, mean, var in _measured(look):
        if not norm.cancelling:
            continue
        rounding = _ROUNDING[norm.bits or 32]
        varies = var > _NO_VARIANCE * np.square(mean)
        errors = np.where(varies, rounding * np.square(mean) / np.maximum(var + (norm.epsilon or 0), 1e-30), 0.0)
        order = np.argsort(errors, None)
        judged = order[-1] if norm.kind == "batch" else order[len(order) // 2]
        error, own_mean, deviation = (float(one.flat[judged]) for one in (errors, mean, np.sqrt(var)))
        if error >= 1e-3:
            severity: Severity = "error" if error >= 0.3 else "warning" if error >= 1e-2 else "note"
            which = (
                f"{'a channel' if norm.kind == 'batch' else 'an example'} has mean {own_mean:.3g} and deviation {deviation:.3g}"
            )
            why = f"its variance is E[x^2] - E[x]^2, and {which}: about {min(error, 1):.1%} of the variance is rounding"
            fix = fixes.get(norm.library, "take the mean of jnp.square(x - mean), or the mean off x before the norm")
            yield Finding("cancelling-variance", severity, norm.where, why, fix, {"error": error, "mean": own_mean})


@rule
def stopped_statistics(look: Look) -> Iterator[Finding]:
    """Training normalizes by statistics of the batch through which no gradient flows.

    The gradient then has the parts that a batch norm takes out, along the mean and along the data: it makes weights and biases
    grow without the loss changing. Batch renormalization stops its correction on purpose, and not the statistics.

    Sick:
      mean, var = jax.lax.stop_gradient((x.mean(0), x.var(0)))

    Healed:
      mean, var = x.mean(0), x.var(0)
    """
    for norm in look.training.found.norms:
        if norm.kind == "batch" and norm.stopped and norm.ours != "batch_renorm":
            why = "it normalizes by the batch in training, but its mean or variance has no gradient"
            fix = "(x - mean) * jax.lax.rsqrt(var + epsilon), with jax.lax.stop_gradient in the new averages alone"
            yield Finding("stopped-statistics", "warning", norm.where, why, fix)


@rule
def epsilon_dominates(look: Look) -> Iterator[Finding]:
    """Epsilon is more than a tenth of the variance of what enters a norm, so that this does not come out with variance 1.

    A note, or a warning where it is so in more than half of the channels; for norms within examples a note where it is so in a
    tenth of these. Small variances come from inputs that are not scaled or from weights that start too small.

    Sick:
      nn.LayerNorm(epsilon=1e-6)(1e-3 * x)

    Healed:
      nn.LayerNorm(epsilon=1e-12)(1e-3 * x)
    """
    for norm, mean, var in _measured(look):
        small = ~_is_dead(mean, var) & (var < 10 * (norm.epsilon or 0))
        share = float(small.mean())
        if small.any() and (norm.kind == "batch" or share >= 0.1):
            typical = float(np.median(var[small]))
            why = f"epsilon is {norm.epsilon:.1e}, and the variance is {typical:.1e} in {share:.0%} of what it normalizes"
            name = "eps" if norm.library in ("haiku", "equinox") else "epsilon"
            fix = f"{name}={typical / 100:.0e}, or inputs and weights of a larger scale"
            figures = {"epsilon": norm.epsilon or 0, "var": typical, "share": share}
            yield Finding("epsilon-dominates", _by_share(share), norm.where, why, fix, figures)


@rule
def dead_channel(look: Look) -> Iterator[Finding]:
    """A channel that enters a norm with statistics of the batch has the same value in all of it.

    It comes out as the bias and tells nothing, and in inference a small change of it is divided by the root of epsilon alone. A
    note, or a warning where it is so in more than half of the channels.

    Sick:
      nn.BatchNorm(use_running_average=not train)(nn.relu(nn.Dense(8, bias_init=nn.initializers.constant(-20.0))(x)))

    Healed:
      nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x)))
    """
    for norm, mean, var in _measured(look):
        dead = _is_dead(mean, var)
        if norm.kind == "batch" and dead.any():
            share = float(dead.mean())
            why = f"{dead.sum()} of its {dead.size} channels never vary in this batch, as number {np.argwhere(dead)[0].tolist()}"
            fix = (
                "leave out features that are constant; of dead units behind a relu, a smaller learning rate or the norm before it"
            )
            yield Finding("dead-channel", _by_share(share), norm.where, why, fix, {"dead": int(dead.sum()), "share": share})


def _measured(look: Look) -> Iterator[tuple[Norm, np.ndarray, np.ndarray]]:
    """Yields the norms that divide by statistics of data in training, with mean and variance of what enters them."""
    for norm in look.training.found.norms:
        moments = look.training.moments(norm) if norm.kind != "averages" else None
        if moments is not None:
            yield norm, np.atleast_1d(moments.mean), np.atleast_1d(moments.var)


def _is_dead(mean: np.ndarray, var: np.ndarray) -> np.ndarray:
    return var <= _NO_VARIANCE * np.square(mean)


def _by_share(share: float) -> Severity:
    return "warning" if share > 0.5 else "note"
