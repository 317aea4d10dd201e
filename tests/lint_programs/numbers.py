"""Models whose statistics are computed or used badly: rounded, cancelled, stopped, of too little variance."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

import jaxnorm
import jaxnorm.linen
import jaxnorm.nnx
from jaxnorm.diagnostics._lint.report import Report
from lint_programs import program
from lint_programs.small_models import (
    LinenNorm,
    NnxNorm,
    exact,
    haiku_norm,
    half,
    init_own_norm,
    lint_equinox,
    lint_haiku,
    lint_linen,
    lint_nnx,
    lint_pure,
    normal,
    own_norm,
    squares,
    stopped,
)

_BFLOAT16 = jnp.bfloat16


@program("half-precision-statistics", "jaxnorm", where="own_norm")
def jaxnorm_half(sick: bool) -> Report:
    def body(params, stats, x, train):
        x, first = jaxnorm.batch_norm(params[0], stats[0], x.astype(_BFLOAT16), train=train, momentum=0.9)
        x, second = own_norm(half if sick else exact, params[1], stats[1], jax.nn.gelu(x), train)
        return x, (first, second)

    first, second = jaxnorm.init_batch_norm(4), init_own_norm(4)
    return lint_pure(
        lambda params, *rest: body(params["norms"], *rest), {"norms": (first[0], second[0])}, (first[1], second[1]), normal()
    )


@program("half-precision-statistics", "linen", where="BatchNorm_0")
def linen_half(sick: bool) -> Report:
    def body(x, train):
        norm = nn.BatchNorm(not train, momentum=0.9, dtype=_BFLOAT16, force_float32_reductions=not sick)
        return norm(nn.Dense(8, use_bias=False, dtype=_BFLOAT16)(x))

    return lint_linen(body, normal())


@program("half-precision-statistics", "nnx", where="norm")
def nnx_half(sick: bool) -> Report:
    return lint_nnx(normal().astype(_BFLOAT16), 4, norm=NnxNorm(4, half if sick else exact))


@program("half-precision-statistics", "haiku", where="batch_norm")
def haiku_half(sick: bool) -> Report:
    import haiku as hk

    def body(x, train):
        y = hk.BatchNorm(True, True, 0.9)(x.astype(_BFLOAT16 if sick else jnp.float32), train)
        return y.astype(jnp.float32)

    return lint_haiku(body, normal())


@program("half-precision-statistics", "equinox", where="layers/1", deep="vmap")
def equinox_half(sick: bool) -> Report:
    import equinox as eqx

    norm = eqx.nn.BatchNorm(4, "batch", momentum=0.9, mode="batch")
    narrow = eqx.nn.Lambda(lambda x: x.astype(_BFLOAT16 if sick else jnp.float32))
    return lint_equinox([narrow, norm], 4, normal())


@program("half-precision-statistics", "linen", where="LayerNorm_0", deep="remat")
def linen_half_in_remat(sick: bool) -> Report:
    def body(x, train):
        norm = nn.remat(nn.LayerNorm)(dtype=_BFLOAT16, force_float32_reductions=not sick, name="LayerNorm_0")
        return norm(nn.Dense(8, dtype=_BFLOAT16)(x)).astype(jnp.float32)

    return lint_linen(body, normal())


@program("cancelling-variance", "jaxnorm", where="own_norm")
def jaxnorm_cancelling(sick: bool) -> Report:
    def body(params, stats, x, train):
        if sick:
            y, stats = own_norm(squares, params["norm"], stats, x, train)
            return y, jaxnorm.RunningStats(*stats)
        return jaxnorm.batch_norm(params["norm"], stats, x, train=train, momentum=0.9)

    x = normal(mean=300.0)
    return lint_pure(body, {"norm": jaxnorm.init_batch_norm(4)[0]}, jaxnorm.RunningStats(*exact(x)), x)


def _averages_of(x: jax.Array):
    """Returns a function that puts mean and variance of x into the variables of a linen model with one norm."""
    mean, var = exact(x)
    return lambda variables: {**variables, "batch_stats": {"BatchNorm_0": {"mean": mean, "var": var}}}


@program("cancelling-variance", "linen", where="BatchNorm_0")
def linen_cancelling(sick: bool) -> Report:
    x = normal(mean=1000.0)
    return lint_linen(lambda x, train: nn.BatchNorm(not train, momentum=0.9, use_fast_variance=sick)(x), x, given=_averages_of(x))


@program("cancelling-variance", "nnx", where="norm")
def nnx_cancelling(sick: bool) -> Report:
    return lint_nnx(normal(mean=-500.0), 4, norm=nnx.LayerNorm(4, use_fast_variance=sick, rngs=nnx.Rngs(0)))


@program("cancelling-variance", "haiku", where="batch_norm")
def haiku_cancelling(sick: bool) -> Report:
    import haiku as hk

    x = normal(mean=400.0)
    return lint_haiku(lambda x, train: hk.BatchNorm(True, True, 0.9)(x if sick else x - 400, train), x)


@program("cancelling-variance", "jax", where="own_norm", deep="branch")
def jax_cancelling_in_cond(sick: bool) -> Report:
    def body(params, stats, x, train):
        x = x.at[:, 0].add(0 if not sick else 2e3)
        return jax.lax.cond(
            jnp.asarray(train),
            lambda x: own_norm(squares if sick else exact, params["norm"], stats, x, True),
            lambda x: own_norm(exact, params["norm"], stats, x, False),
            x,
        )

    params, stats = init_own_norm(4)
    return lint_pure(body, {"norm": params}, stats, normal())


@program("stopped-statistics", "jaxnorm", where="norm")
def jaxnorm_stopped(sick: bool) -> Report:
    def body(params, stats, x, train):
        if sick and train:  # the statistics that batch_norm gives back are those of the batch, but no gradient flows through them
            _, batch = jaxnorm.batch_norm(params["norm"], stats, x, train=True, momentum=0.0)
            stats = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, stats, batch)
            return jaxnorm.batch_norm(params["norm"], batch, x, train=False)[0], stats
        return jaxnorm.batch_norm(params["norm"], stats, x, train=train, momentum=0.9)

    params, stats = jaxnorm.init_batch_norm(4)
    return lint_pure(body, {"norm": params}, stats, normal())


@program("stopped-statistics", "linen", where="LinenNorm_0")
def linen_stopped(sick: bool) -> Report:
    return lint_linen(lambda x, train: LinenNorm(stopped if sick else exact)(nn.Dense(8, use_bias=False)(x), train), normal())


@program("stopped-statistics", "nnx", where="norm")
def nnx_stopped(sick: bool) -> Report:
    return lint_nnx(normal(), 4, norm=NnxNorm(4, stopped if sick else exact))


@program("stopped-statistics", "haiku", where="own_norm")
def haiku_stopped(sick: bool) -> Report:
    return lint_haiku(lambda x, train: haiku_norm(x, train, stopped if sick else exact), normal())


@program("stopped-statistics", "jax", where="own_norm", deep="remat")
def jax_stopped_variance_in_remat(sick: bool) -> Report:
    def moments(x):
        mean, var = exact(x)
        return mean, jax.lax.stop_gradient(var) if sick else var

    def body(params, stats, x, train):
        return jax.checkpoint(functools.partial(own_norm, moments, train=train))(params["norm"], stats, x)

    params, stats = init_own_norm(4)
    return lint_pure(body, {"norm": params}, stats, normal())


@program("stopped-statistics", "jaxnorm.linen", where="LinenNorm_0")
def renorm_is_not_stopped(sick: bool) -> Report:
    def body(x, train):
        return LinenNorm(stopped)(x, train) if sick else jaxnorm.linen.BatchRenorm(not train, momentum=0.9)(x)

    return lint_linen(body, normal())


@program("epsilon-dominates", "jaxnorm", where="norm")
def jaxnorm_epsilon(sick: bool) -> Report:
    def body(params, stats, x, train):
        return jaxnorm.batch_norm(params["norm"], stats, x, train=train, momentum=0.9, epsilon=1e-5 if sick else 1e-12)

    params, _ = jaxnorm.init_batch_norm(4)
    x = normal(std=1e-3)
    return lint_pure(body, {"norm": params}, jaxnorm.RunningStats(*exact(x)), x)


@program("epsilon-dominates", "linen", where="LayerNorm_0")
def linen_epsilon(sick: bool) -> Report:
    return lint_linen(lambda x, train: nn.LayerNorm(epsilon=1e-6 if sick else 1e-12)(x), normal(std=1e-3))


@program("epsilon-dominates", "nnx", where="norm")
def nnx_epsilon(sick: bool) -> Report:
    rngs = nnx.Rngs(0)
    init = nnx.initializers.normal(1e-3 if sick else 1.0)
    dense = nnx.Linear(4, 8, use_bias=False, kernel_init=init, rngs=rngs)
    return lint_nnx(normal(), 8, dense=dense, norm=nnx.BatchNorm(8, momentum=0.9, rngs=rngs))


@program("epsilon-dominates", "haiku", where="rms_norm")
def haiku_epsilon(sick: bool) -> Report:
    import haiku as hk

    return lint_haiku(lambda x, train: hk.RMSNorm(-1, eps=0.3 if sick else 1e-5)(x), normal())


@program("epsilon-dominates", "equinox", where="layers/0", deep="vmap")
def equinox_epsilon(sick: bool) -> Report:
    import equinox as eqx

    return lint_equinox([eqx.nn.LayerNorm(4, eps=1e-5)], 4, normal(std=1e-3 if sick else 1.0))


@program("epsilon-dominates", "jaxnorm.linen", where="BatchNorm_0", deep="scan")
def linen_epsilon_in_scan(sick: bool) -> Report:
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.Dense(4, use_bias=False, kernel_init=nn.initializers.normal(1e-3 if sick else 1.0))(x)
            return jaxnorm.linen.BatchNorm(not train, momentum=0.9)(x), None

    def body(x, train):
        layers = nn.scan(
            Block,
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=3,
        )
        return layers()(x, train)[0]

    return lint_linen(body, normal())


@program("dead-channel", "jaxnorm", where="norm")
def jaxnorm_dead(sick: bool) -> Report:
    def body(params, stats, x, train):
        return jaxnorm.batch_norm(params["norm"], stats, x, train=train, momentum=0.9)

    params, stats = jaxnorm.init_batch_norm(4)
    x = normal()
    return lint_pure(body, {"norm": params}, stats, x.at[:, 1].set(0.7) if sick else x)


@program("dead-channel", "linen", where="BatchNorm_0")
def linen_dead(sick: bool) -> Report:
    def body(x, train):
        x = nn.Dense(8, bias_init=nn.initializers.constant(-20.0 if sick else 1.0))(x)
        return nn.BatchNorm(not train, momentum=0.9)(nn.relu(x))

    return lint_linen(body, normal())


@program("dead-channel", "nnx", where="norm")
def nnx_dead(sick: bool) -> Report:
    rngs = nnx.Rngs(0)
    dense = nnx.Linear(4, 8, use_bias=False, rngs=rngs)
    if sick:
        dense.kernel[...] = dense.kernel[...].at[:, 3:].set(0)
    return lint_nnx(normal(), 8, dense=dense, norm=nnx.BatchNorm(8, momentum=0.9, rngs=rngs))


@program("dead-channel", "haiku", where="batch_norm")
def haiku_dead(sick: bool) -> Report:
    import haiku as hk

    x = normal()
    x = jnp.stack([x, jnp.full_like(x, 0.25) if sick else x], 1)
    return lint_haiku(lambda x, train: hk.BatchNorm(True, True, 0.9)(x.reshape(len(x), -1), train), x)


@program("dead-channel", "equinox", where="layers/1", deep="vmap")
def equinox_dead(sick: bool) -> Report:
    import equinox as eqx

    norm = eqx.nn.BatchNorm(4, "batch", momentum=0.9, mode="batch")
    clip = eqx.nn.Lambda(lambda x: jnp.clip(x, 5, 6) if sick else jnp.clip(x, -5, 5))
    return lint_equinox([clip, norm], 4, normal())
