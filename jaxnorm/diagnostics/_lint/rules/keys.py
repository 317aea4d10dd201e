"""Rules about keys: noise that is the same where it should differ."""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm.diagnostics._lint.look import Look
from jaxnorm.diagnostics._lint.records import Draw
from jaxnorm.diagnostics._lint.report import Finding, Where
from jaxnorm.diagnostics._lint.rules._rule import rule
from jaxnorm.diagnostics._lint.rules.noise import scales
from jaxnorm.diagnostics._lint.values import Place

_A_MASK_EACH = {
    "linen": 'no broadcast_dims of the batch; nn.vmap(..., split_rngs={"params": False, "dropout": True})',
    "nnx": "no broadcast_dims of the batch; under vmap jax.random.split(rngs.dropout(), len(x)), a key for each example",
}
_KEYS_OF_STEPS = {"linen": 'nn.scan(..., split_rngs={"params": True, "dropout": True})'}
_A_KEY_EACH = "jax.vmap(..., in_axes=(0, 0))(jax.random.split(key, len(x)), x)"


@rule
def noise_shared_by_examples(look: Look) -> Iterator[Finding]:
    """All examples of the batch have one mask, without being asked to by a pattern of ours.

    The gradient of a batch is then that of one subnet, whose noise does not average out over the examples. One decision for the
    whole batch, as of stochastic depth, is silent; that Flax's attention does so unless told otherwise is a note.

    Sick: `jax.vmap(lambda row: dropout(key, row, 0.5))(x)`.
    Healed: `jax.vmap(lambda key, row: dropout(key, row, 0.5))(jax.random.split(key, len(x)), x)`.
    """
    noises = look.training.found.noises
    shared = [noise for noise in noises if noise.shared and not (noise.ours and noise.asked) and scales(look.training, noise)]
    alone = len(shared) == len(noises)
    if not shared or (alone and not _alike(look)):
        return
    why = "all examples of the batch have the same mask" + (": equal ones have equal outputs in training" if alone else "")
    for noise in shared:
        fix = "broadcast_dropout=False" if noise.asked else _A_MASK_EACH.get(noise.library, _A_KEY_EACH)
        yield Finding("noise-shared-by-examples", "note" if noise.asked else "warning", noise.where, why, fix)


def _alike(look: Look) -> bool:
    """Whether a batch of equal examples has equal outputs in training."""
    x = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], jnp.shape(leaf)) if jnp.ndim(leaf) else leaf, look.model.x)
    outputs = jax.tree.leaves(look.training.run(x=x).outputs)
    along = [
        (np.asarray(output), axis)
        for output, value in zip(outputs, look.training.outputs, strict=True)
        for axis in value.examples
    ]
    return all(np.allclose(output, output.take([0], axis), rtol=1e-3, atol=1e-5) for output, axis in along)


@rule
def noise_repeated(look: Look) -> Iterator[Finding]:
    """One key draws two masks, or the same one in every step of a loop.

    What drops together is learned together: two layers of one mask have less noise than they seem to. Where every step of a
    recurrent net is to have one mask, it is drawn before the loop.

    Sick: `dropout(key, f(dropout(key, x, 0.5)), 0.5)`.
    Healed: `first, second = jax.random.split(key)`, and one for each.
    """
    draws = _draws_of(look)
    found: list[tuple[Where, str, str]] = []
    for draw in draws:
        if draw.repeated_in_loop:
            fix = _KEYS_OF_STEPS.get(draw.library, "jax.lax.scan(step, carry, (xs, jax.random.split(key, len(xs))))")
            found.append((draw.where, "every step of the loop around it draws the same random numbers", fix))
    for number, draw in enumerate(draws):
        earlier = (one for one in draws[:number] if one.key == draw.key and not _exclusive(one.place, draw.place))
        if (first := next(earlier, None)) is not None:
            why = f"its random numbers are drawn by the key of {first.where.path or first.where.line}"
            found.append((draw.where, why, "first, second = jax.random.split(key)"))
    confirmed = "; jax.debug_key_reuse says so too" if found and _jax_sees_reuse(look) else ""
    for where, why, fix in found:
        yield Finding("noise-repeated", "warning", where, why + confirmed, fix)


def _jax_sees_reuse(look: Look) -> bool:
    """Whether jax's own checker, which knows typed keys alone, finds that training uses a key twice."""
    model = look.model
    try:
        with jax.debug_key_reuse(True):
            jax.make_jaxpr(partial(model.apply, train=True))(model.key, model.params, model.stats, model.x)
    except jax.errors.KeyReuseError:
        return True
    return False


def _exclusive(first: Place, second: Place) -> bool:
    """Whether two equations are on different branches of one."""
    differ = next(depth for depth, (one, other) in enumerate(zip(first, second, strict=False)) if one != other)
    return differ % 2 == 1


@rule
def key_constant(look: Look) -> Iterator[Finding]:
    """A key of training is made in the function: it draws the same noise in every step.

    What inference draws by such a key too, as random features, is no noise.

    Sick: `dropout(jax.random.key(0), x, 0.5)`.
    Healed: `dropout(key, x, 0.5)`, of the key that the step is given.
    """
    fix = {
        "linen": 'no rng= in the call: model.apply(..., rngs={"dropout": key})',
        "nnx": "no rngs= in the call: nnx.Dropout(rate, rngs=rngs), whose stream counts its draws",
    }
    fixed = {draw.where for draw in look.inference.found.draws if draw.constant}
    for draw in _draws_of(look):
        if draw.constant and draw.where not in fixed:
            why = "its key comes from no argument of the model: every step draws the same random numbers"
            yield Finding(
                "key-constant", "error", draw.where, why, fix.get(draw.library, "draw by the key that the model is given")
            )


def _draws_of(look: Look) -> list[Draw]:
    """Returns the draws that noise in training is made of."""
    used = {place for noise in look.training.found.noises for place in noise.draws}
    return [draw for draw in look.training.found.draws if draw.place in used]
