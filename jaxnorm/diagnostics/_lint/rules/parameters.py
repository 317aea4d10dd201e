"""Rules about parameters and optimizers."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnorm.diagnostics._lint.look import Look
from jaxnorm.diagnostics._lint.program import leaf_paths
from jaxnorm.diagnostics._lint.report import Finding, Where
from jaxnorm.diagnostics._lint.rules._rule import rule

_UNCHANGED = 1e-4  # of the outputs: more than rounding and epsilon change, less than a parameter does
_STEPS = 8  # of an optimizer whose learning rate begins at 0, or that adds gradients up


@rule
def useless_parameter(look: Look) -> Iterator[Finding]:
    """A bias or a scale changes nothing of what training gives, since the norm behind it takes it out.

    It costs memory and time, its gradient is rounding, and decay moves it. Inference does change with it, as the averages know
    nothing of that. It is seen by changing it, while no other parameter is 0.

    Sick:
      nn.BatchNorm(use_running_average=not train)(nn.Conv(8, (3, 3))(x))

    Healed:
      nn.BatchNorm(use_running_average=not train)(nn.Conv(8, (3, 3), use_bias=False)(x))
    """
    norms = {path: norm for norm in look.training.found.norms for path in norm.before if path.startswith("params")}
    for kind in ("batch", "sample"):
        for path in _without_effect(look, [path for path, norm in norms.items() if norm.kind == kind]):
            why = f"training gives the same when it changes, since the norm behind it, {norms[path].where}, takes it out"
            fix = "with_bias=False" if norms[path].library == "haiku" else "use_bias=False"
            yield Finding("useless-parameter", "note", Where(path, norms[path].where.line), why, fix)


@rule
def norm_after_norm(look: Look) -> Iterator[Finding]:
    """A norm stands behind another one, along the same axes, with nothing but an affine map between.

    It finds mean 0 and variance 1 already, and takes out the scale and the bias of the first. A note, or a warning where both are
    of the batch.

    Sick:
      nn.LayerNorm()(nn.LayerNorm()(x))

    Healed:
      nn.LayerNorm()(x)
    """
    found = look.training.found
    for norm in found.norms:
        if norm.after is not None and norm.kind != "averages":
            first = found.norm(norm.after)
            why = f"it norms what {first.where} has normed along the same axes already"
            severity = "warning" if norm.kind == first.kind == "batch" else "note"
            yield Finding("norm-after-norm", severity, norm.where, why, "leave one of the two out")


@rule
def decay_on_norm(look: Look) -> Iterator[Finding]:
    """The optimizer draws the scale or the bias of a norm to 0 where the gradient is 0.

    Decay of a kernel before a norm sets the size of its steps; that of a scale or bias makes the outputs smaller, and these are
    so few that they need no regularization. It is seen by giving the optimizer a gradient of 0, and parameters of 0 and of 1.

    Sick:
      optax.adamw(1e-3)

    Healed:
      optax.adamw(1e-3, mask=jaxnorm.training.no_decay_mask)
    """
    if look.model.optimizer is None:
        return
    decay = _decay(look.model.optimizer, look.model.params)
    own = {path: norm for norm in look.training.found.norms for path in norm.params}
    drawn = {path: decay[path] for path in own if decay.get(path, 0) > 0}
    if drawn:
        path, most = next(iter(drawn.items()))
        why = f"{len(drawn)} scales and biases of norms are drawn to 0 without a gradient, by {most:.1e} in {_STEPS} steps"
        fix = "optax.adamw(..., mask=jaxnorm.training.no_decay_mask)"
        yield Finding(
            "decay-on-norm", "warning", Where(path, own[path].where.line), why, fix, {"params": len(drawn), "decay": most}
        )


@rule
def averages_in_optimizer(look: Look) -> Iterator[Finding]:
    """A norm divides in inference by parameters that training does not use.

    They are its running averages, which no gradient reaches: an optimizer leaves them as they began, or lets them decay, instead
    of averaging. An error where an optimizer is given, else a warning.

    Sick:
      var = self.param("var", nn.initializers.ones, (8,))

    Healed:
      var = self.variable("batch_stats", "var", jnp.ones, (8,))
    """
    fixes = {
        "linen": 'self.variable("batch_stats", ...) instead of self.param(...); optimizer.init(variables["params"])',
        "nnx": "nnx.BatchStat instead of nnx.Param; nnx.Optimizer(..., wrt=nnx.Param)",
        "haiku": "hk.get_state and hk.set_state instead of hk.get_parameter",
    }
    for norm in look.inference.found.norms:
        of_params = norm.averages and all(path.startswith("params") for path in norm.averages)
        if norm.kind == "averages" and of_params and len(_without_effect(look, norm.averages)) == len(norm.averages):
            why = f"inference divides by {', '.join(norm.averages)}, which training does not use, so that no gradient reaches it"
            fix = fixes.get(norm.library, "return running averages as new statistics, and give the optimizer parameters alone")
            severity = "warning" if look.model.optimizer is None else "error"
            yield Finding("averages-in-optimizer", severity, Where(norm.averages[0], norm.where.line), why, fix)


def _without_effect(look: Look, paths: Sequence[str]) -> list[str]:
    """Returns which of these parameters change nothing of the outputs of training, found by halves."""
    if not paths or not np.isfinite(usual := _outputs(look, ())).all():
        return []
    rounding = _UNCHANGED * float(np.linalg.norm(usual - usual.mean()))

    def search(part: Sequence[str]) -> list[str]:
        if np.linalg.norm(_outputs(look, part) - usual) < rounding:
            return list(part)
        half = len(part) // 2
        return [*search(part[:half]), *search(part[half:])] if half else []

    return search(paths)


def _outputs(look: Look, changed: Sequence[str]) -> np.ndarray:
    """Returns all outputs of training, where no parameter is 0, and these are a quarter to three quarters larger."""
    leaves, tree = jax.tree.flatten(look.model.params)
    for number, path in enumerate(leaf_paths("params", look.model.params)):
        if jnp.issubdtype(jnp.result_type(leaves[number]), jnp.inexact):
            leaf, noise = np.asarray(leaves[number]), np.random.default_rng(number)
            away = np.where(leaf == 0, noise.uniform(0.1, 0.5, leaf.shape), leaf)
            factor = noise.uniform(1.25, 1.75, leaf.shape) if path in changed else 1.0
            leaves[number] = (away * factor).astype(leaf.dtype)
    outputs = look.training.run(params=jax.tree.unflatten(tree, leaves)).outputs
    return np.concatenate([np.ravel(np.asarray(leaf, np.complex128)) for leaf in jax.tree.leaves(outputs)])


def _decay(optimizer: Any, params: Any) -> dict[str, float]:
    """Returns by path how far parameters of 1 are drawn to 0 in some steps whose gradients are 0."""
    optimizer = optax.with_extra_args_support(optimizer)
    no_gradient = jax.tree.map(jnp.zeros_like, params)

    @jax.jit
    def step(state: Any, params: Any) -> tuple[Any, Any]:
        return optimizer.update(no_gradient, state, params, value=jnp.zeros(()))

    def moved(fill: Any) -> list[jax.Array]:
        filled = jax.tree.map(fill, params)
        state, total = optimizer.init(filled), no_gradient
        for _ in range(_STEPS):
            updates, state = step(state, filled)
            total = jax.tree.map(jnp.add, total, updates)
        return jax.tree.leaves(total)

    with jax.debug_key_reuse(False):  # an optimizer's own noise is the same both times, and no decay
        of_zeros, of_ones = moved(jnp.zeros_like), moved(jnp.ones_like)
    drawn = [float(jnp.max(zero - one)) for zero, one in zip(of_zeros, of_ones, strict=True)]
    return dict(zip(leaf_paths("params", params), drawn, strict=True))
