"""Models of which something is not finite, or whose state is of another type after a step."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

import jaxnorm
from jaxnorm.diagnostics._lint.report import Report
from lint_programs import program
from lint_programs.small_models import exact, init_own_norm, lint_haiku, lint_linen, lint_nnx, lint_pure, normal, own_norm


@program("not-finite", "jaxnorm", where="jaxnorm_not_finite")
def jaxnorm_not_finite(sick: bool) -> Report:
    def body(params, stats, x, train):
        y, new = jaxnorm.batch_norm(params["norm"], stats["norm"], x, train=train, momentum=0.9)
        largest = jnp.log(x.max() if not sick else x.min()) if train else stats["largest"]
        return y, {"norm": new, "largest": largest}

    params, stats = jaxnorm.init_batch_norm(4)
    return lint_pure(body, {"norm": params}, {"norm": stats, "largest": jnp.zeros(())}, normal())


@program("not-finite", "linen", where="linen_not_finite")
def linen_not_finite(sick: bool) -> Report:
    return lint_linen(lambda x, train: nn.LayerNorm()(jnp.sqrt(x) if sick else jnp.sqrt(jnp.square(x))), normal())


@program("not-finite", "nnx", where="stats/norm/var")
def nnx_not_finite(sick: bool) -> Report:
    norm = nnx.BatchNorm(4, momentum=0.9, rngs=nnx.Rngs(0))
    if sick:  # as one bad batch leaves them for ever
        norm.var[...] = norm.var[...].at[2].set(jnp.nan)
    return lint_nnx(normal(), 4, norm=norm)


@program("not-finite", "haiku", where="batch_norm")
def haiku_not_finite(sick: bool) -> Report:
    import haiku as hk

    def body(x, train):
        return hk.BatchNorm(True, True, 0.9, eps=0.0 if sick else 1e-5)(x, train)

    return lint_haiku(body, normal().at[:, 0].set(0.0))


@program("not-finite", "jax", where="jax_attention_to_nothing", deep="branch")
def jax_attention_to_nothing(sick: bool) -> Report:
    def body(params, stats, x, train):
        """Attention among 8 tokens, of which none may be seen where an example is empty."""
        length = jnp.arange(32) % 8 + (0 if sick else 1)
        seen = jnp.arange(8)[None, None] < length[:, None, None]
        y, stats = jax.lax.cond(train, lambda: own_norm(exact, params["norm"], stats, x.sum(1), train), lambda: (x.sum(1), stats))
        weights = jax.nn.softmax(jnp.where(seen, jnp.einsum("bqc,bkc->bqk", x, x), -jnp.inf))
        return y + jnp.einsum("bqk,bkc->bqc", weights, x).mean(1), stats

    params, stats = init_own_norm(4)
    return lint_pure(body, {"norm": params}, stats, normal(32, 8, 4))


@program("state-changes-type", "jaxnorm", where="steps")
def jaxnorm_state_changes_type(sick: bool) -> Report:
    def body(params, stats, x, train):
        steps = stats["steps"]
        momentum = jnp.minimum(0.9, steps / (steps + 1))
        y, norm = jaxnorm.batch_norm(params["norm"], stats["norm"], x, train=train, momentum=momentum)
        return y, {"norm": norm, "steps": steps + 1.0 if train else steps}

    params, stats = jaxnorm.init_batch_norm(4)
    steps = jnp.asarray(100, jnp.int32) if sick else jnp.asarray(100.0)
    return lint_pure(body, {"norm": params}, {"norm": stats, "steps": steps}, normal())


def _in_16_bits(tree):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tree)


@program("state-changes-type", "linen", where="BatchNorm_0")
def linen_state_changes_type(sick: bool) -> Report:
    def given(variables):
        variables = {**variables, "params": _in_16_bits(variables["params"])}
        return _in_16_bits(variables) if sick else variables

    return lint_linen(lambda x, train: nn.BatchNorm(not train, momentum=0.9)(x), normal(), given=given)


class _Longest(nnx.Module):
    """Hands on what it is given, and keeps the means of all steps, or of the last one."""

    def __init__(self, all_steps: bool):
        self.means, self.all_steps, self.use_running_average = nnx.BatchStat(jnp.zeros(1)), all_steps, False

    def __call__(self, x: jax.Array) -> jax.Array:
        if not self.use_running_average:
            kept = self.means[...] if self.all_steps else jnp.zeros(0)
            self.means.set_value(jnp.concatenate([kept, x.mean(keepdims=True)[0]]))
        return x


@program("state-changes-type", "nnx", where="seen")
def nnx_state_changes_type(sick: bool) -> Report:
    norm = nnx.BatchNorm(4, momentum=0.9, rngs=nnx.Rngs(0))
    return lint_nnx(normal(), 4, norm=norm, seen=_Longest(sick))


@program("state-changes-type", "haiku", where="batch_norm")
def haiku_state_changes_type(sick: bool) -> Report:
    import haiku as hk

    given = _in_16_bits if sick else lambda stats: stats
    return lint_haiku(lambda x, train: hk.BatchNorm(True, True, 0.9)(x, train), normal(), given=given)


@program("state-changes-type", "jax", where="0", deep="scan")
def jax_state_changes_type_in_scan(sick: bool) -> Report:
    def body(params, stats, x, train):
        def layer(x, of_layer):
            y, new = own_norm(exact, *of_layer, x, train)
            return y, new

        y, new = jax.lax.scan(layer, x, (params["norms"], stats))
        return y, _in_16_bits(new) if sick and train else new

    params, stats = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), init_own_norm(4))
    return lint_pure(body, {"norms": params}, stats, normal())
