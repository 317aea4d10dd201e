"""Following a traced program: norms, noise, keys and averages are found by what is computed, wherever that stands."""

from collections.abc import Callable
from functools import partial
from typing import Any

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Primitive
from jax.sharding import Mesh, PartitionSpec

import jaxnorm
from jaxnorm.diagnostics._lint.axes import moves
from jaxnorm.diagnostics._lint.follower import Followed
from jaxnorm.diagnostics._lint.following import follow
from jaxnorm.diagnostics._lint.program import paths_of
from jaxnorm.diagnostics._lint.records import Norm

pytestmark = pytest.mark.jax_defaults  # as in the code of users

KEY = jax.random.key(0)
X = jnp.ones((8, 6, 4))
PARAMS = {"norm": {"scale": jnp.ones(4), "bias": jnp.ones(4)}, "dense": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}}
STATS = {"norm": {"mean": jnp.zeros(4), "var": jnp.ones(4)}}
EPSILON = 1e-3


def followed(function: Callable[..., Any], *, key: Any = KEY, params: Any = PARAMS, stats: Any = STATS, x: Any = X) -> Followed:
    """Follows `function(key, params, stats, x)`."""
    with jax.debug_key_reuse(False):
        closed = jax.make_jaxpr(function)(key, params, stats, x)
    found = follow(closed, paths_of(key, params, stats, x))
    assert found.unknown == ()
    return found


def norm_of(function: Callable[[jax.Array], Any], x: Any = X, kind: str = "batch") -> Norm:
    """The one norm of a function of x."""
    (norm,) = followed(lambda key, params, stats, x: function(x), x=x).norms
    assert norm.kind == kind
    assert norm.sure
    return norm


def standardize(x: jax.Array, axes: Any = (0, 1)) -> jax.Array:
    mean = x.mean(axes, keepdims=True)
    return (x - mean) * lax.rsqrt(jnp.square(x - mean).mean(axes, keepdims=True) + EPSILON)


def drop(key: jax.Array, x: jax.Array, shape: Any = None) -> jax.Array:
    return jnp.where(jax.random.bernoulli(key, 0.5, x.shape if shape is None else shape), x / 0.5, 0)


# How statistics are computed, and data is divided by them.


def of_squares(x: jax.Array) -> jax.Array:
    mean = x.mean((0, 1))
    return (x - mean) / jnp.sqrt((x * x).mean((0, 1)) - mean**2 + EPSILON)


def by_a_power(x: jax.Array) -> jax.Array:
    return (x - x.mean((0, 1))) * (x.var((0, 1)) + EPSILON) ** -0.5


def by_a_reciprocal(x: jax.Array) -> jax.Array:
    return (x - x.mean((0, 1))) * (1 / jnp.sqrt(x.var((0, 1)) + EPSILON))


def by_an_inverse(x: jax.Array) -> jax.Array:
    return (x - x.mean((0, 1))) * lax.integer_pow(jnp.sqrt(x.var((0, 1)) + EPSILON), -1)


def with_a_folded_mean(x: jax.Array) -> jax.Array:
    factor = lax.rsqrt(x.var((0, 1)) + EPSILON)
    return x * factor + (1 - x.mean((0, 1)) * factor)


def by_products(x: jax.Array) -> jax.Array:
    rows = x.reshape(-1, 4)
    centered = rows - jnp.ones(48) @ rows / 48
    return centered * lax.rsqrt(jnp.einsum("nc,nc->c", centered, centered) / 48 + EPSILON)


def of_counted(x: jax.Array) -> jax.Array:
    mask = jnp.arange(6)[:, None] < 4
    count = 8 * 4
    mean = jnp.where(mask, x, 0).sum((0, 1)) / count
    var = jnp.where(mask, jnp.square(x - mean), 0).sum((0, 1)) / count
    return (x - mean) / jnp.sqrt(var + EPSILON)


def of_absolutes(x: jax.Array) -> jax.Array:
    centered = x - x.mean((0, 1))
    return centered / jnp.abs(centered).mean((0, 1))


def shifted_by_a_row(x: jax.Array) -> jax.Array:
    shift = x[0].mean(0)
    mean = (x - shift).mean((0, 1)) + shift
    return (x - mean) * lax.rsqrt(jnp.square(x - shift).mean((0, 1)) - (mean - shift) ** 2 + EPSILON)


def shifted_by_something_else(x: jax.Array) -> jax.Array:
    shift = jnp.tanh(x).mean((0, 1))
    mean = (x - shift).mean((0, 1)) + shift
    return (x - mean) * lax.rsqrt(jnp.square(x - shift).mean((0, 1)) - (mean - shift) ** 2 + EPSILON)


def of_stacked(x: jax.Array) -> jax.Array:
    mean, squares = jnp.unstack(jnp.stack([x.mean((0, 1)), jnp.square(x).mean((0, 1))]))
    return (x - mean) * lax.rsqrt(squares - mean**2 + EPSILON)


def in_a_branch(x: jax.Array) -> jax.Array:
    return lax.cond(x.sum() > 0, standardize, lambda x: x, x)


def negated(x: jax.Array) -> jax.Array:
    return -(x.mean((0, 1)) - x) * lax.rsqrt(x.var((0, 1)) + EPSILON)


def of_finite_ones(x: jax.Array) -> jax.Array:
    finite = jnp.where(jnp.isfinite(x), x, 0)
    mean = finite.mean((0, 1))
    return (x - mean) * lax.rsqrt(jnp.square(finite - mean).mean((0, 1)) + EPSILON)


def with_names(x: jax.Array) -> jax.Array:
    centered = checkpoint_name(x - x.mean((0, 1)), "centered")
    return centered * checkpoint_name(lax.rsqrt(x.var((0, 1)) + EPSILON), "factor")


def on_this_platform(x: jax.Array) -> jax.Array:
    return lax.platform_dependent(x, cpu=standardize, default=standardize)


def by_named_axes(x: jax.Array) -> jax.Array:
    def of_example(x: jax.Array) -> jax.Array:
        mean = lax.pmean(x.mean(0), "batch")
        var = lax.pmean(jnp.square(x - mean).mean(0), "batch")
        return (x - mean) * lax.rsqrt(var + EPSILON)

    return jax.vmap(of_example, axis_name="batch")(x)


def of_stacked_by_named_axes(x: jax.Array) -> jax.Array:
    def of_example(x: jax.Array) -> jax.Array:
        mean, squares = jnp.unstack(lax.pmean(jnp.stack([x.mean(0), jnp.square(x).mean(0)]), "batch"))
        return (x - mean) * lax.rsqrt(squares - mean**2 + EPSILON)

    return jax.vmap(of_example, axis_name="batch")(x)


@jax.custom_vjp
def with_a_rule(x: jax.Array) -> jax.Array:
    return standardize(x)


with_a_rule.defvjp(lambda x: (standardize(x), ()), lambda _, g: (g,))

WAYS = (
    standardize,
    of_squares,
    by_a_power,
    by_a_reciprocal,
    by_an_inverse,
    with_a_folded_mean,
    by_products,
    of_counted,
    of_absolutes,
    shifted_by_a_row,
    shifted_by_something_else,
    of_stacked,
    in_a_branch,
    negated,
    of_finite_ones,
    with_names,
    on_this_platform,
    by_named_axes,
    of_stacked_by_named_axes,
    with_a_rule,
    jax.jit(standardize),
    jax.checkpoint(standardize),
)


@pytest.mark.parametrize("way", WAYS, ids=[getattr(way, "__name__", str(way)) + str(i) for i, way in enumerate(WAYS)])
def test_norms_are_seen_however_they_are_computed(way: Callable[[jax.Array], jax.Array]) -> None:
    norm = norm_of(way)
    assert norm.elements == (8 * 6 if way is not shifted_by_a_row else 48)
    if way is not of_absolutes:
        assert norm.epsilon == pytest.approx(EPSILON)
    assert norm.cancelling == (way in (of_squares, of_stacked, of_stacked_by_named_axes))
    assert norm.bits == 32
    assert not norm.stopped
    assert not norm.noises


MATRICES: dict[str, Callable[[jax.Array], Any]] = {
    "cholesky": jnp.linalg.cholesky,
    "qr": lambda x: jnp.linalg.qr(x)[1],
    "lu": lambda x: lax.linalg.lu(x)[0],
    "eigh": lambda x: jnp.linalg.eigh(x)[1],
    "eigenvalues": lambda x: jnp.linalg.eigh(x)[0],
    "eig": lambda x: lax.linalg.eig(x)[0].real,
    "svd": lambda x: jnp.linalg.svd(x)[0],
    "householder_product": lambda x: lax.linalg.householder_product(x, x[:, 0]),
    "tridiagonal_solve": lambda x: lax.linalg.tridiagonal_solve(x[:, 0], x[:, 1], x[:, 2], x),
}


@pytest.mark.parametrize("name", MATRICES)
def test_the_axis_of_the_examples_is_that_of_the_matrices(name: str) -> None:
    assert norm_of(lambda x: standardize(MATRICES[name](x[:, :4]), (0,)), kind="batch").axes == {0}
    assert norm_of(lambda x: standardize(MATRICES[name](x[:, :4]), (1,)), kind="sample").axes == {1}


@pytest.mark.parametrize(
    "axes, kind, elements", [((0,), "batch", 8), ((0, 1), "batch", 48), ((2,), "sample", 4), ((1,), "sample", 6)]
)
def test_axes_of_the_examples_tell_the_kind_of_a_norm(axes: Any, kind: str, elements: int) -> None:
    norm = norm_of(partial(standardize, axes=axes), kind=kind)
    assert norm.elements == elements
    assert norm.axes == set(axes)


def convolved(x: jax.Array, shape: tuple[int, ...], axes: tuple[str, str, str]) -> jax.Array:
    return lax.conv_general_dilated(x, jnp.ones(shape), (1,), "SAME", dimension_numbers=axes)


MOVES: dict[str, tuple[Callable[[jax.Array], jax.Array], Any, str]] = {
    "transpose": (lambda x: x.transpose(2, 0, 1), 1, "batch"),
    "transpose away": (lambda x: x.transpose(2, 0, 1), 0, "sample"),
    "merged": (lambda x: x.reshape(48, 4), 0, "batch"),
    "split": (lambda x: x.reshape(2, 4, 6, 4), 1, "batch"),
    "not merged": (lambda x: x.reshape(8, 24), 1, "sample"),
    "squeeze": (lambda x: x[:, None].squeeze(1), 0, "batch"),
    "expand": (lambda x: jnp.expand_dims(x, 0), 1, "batch"),
    "expanded before": (lambda x: jnp.expand_dims(x, 0), 2, "sample"),
    "dense": (lambda x: x @ jnp.ones((4, 5)), 0, "batch"),
    "kernel first": (lambda x: jnp.einsum("oc,bnc->obn", jnp.ones((5, 4)), x), 1, "batch"),
    "attention": (lambda x: jnp.einsum("bnc,bmc->bnm", x, x), 0, "batch"),
    "attention within": (lambda x: jnp.einsum("bnc,bmc->bnm", x, x), 1, "sample"),
    "convolution": (lambda x: convolved(x, (3, 4, 5), ("NWC", "WIO", "NWC")), 0, "batch"),
    "channels first": (lambda x: convolved(x, (3, 6, 5), ("NCW", "WIO", "CNW")), 1, "batch"),
    "window": (lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 1), (1, 2, 1), "VALID"), 0, "batch"),
    "slice": (lambda x: x[:, 1:3], 0, "batch"),
    "dynamic slice": (lambda x: lax.dynamic_slice_in_dim(x, 1, 2, 1), 0, "batch"),
    "concatenate": (lambda x: jnp.concatenate([x, x], 1), 0, "batch"),
    "pad": (lambda x: jnp.pad(x, ((0, 0), (1, 1), (0, 0))), 0, "batch"),
    "stack": (lambda x: jnp.stack([x, x], 0), 1, "batch"),
    "stacked before": (lambda x: jnp.stack([x, x], 0), 2, "sample"),
    "unstack": (lambda x: jnp.unstack(x, axis=1)[0], 0, "batch"),
    "tile": (lambda x: jnp.tile(x, (1, 2, 1)), 0, "batch"),
    "reverse": (lambda x: x[:, ::-1], 0, "batch"),
    "sort": (lambda x: jnp.sort(x, 1), 0, "batch"),
    "cumulative sum": (lambda x: jnp.cumsum(x, 1), 0, "batch"),
    "sum over positions": (lambda x: jnp.exp(x.sum(1)), 0, "batch"),
    "maximum over positions": (lambda x: jnp.exp(x.max(1)), 0, "batch"),
    "embedding": (lambda x: jnp.ones((9, 4))[(x[..., 0] > 0).astype(int)], 0, "batch"),
    "embedding within": (lambda x: jnp.ones((9, 4))[(x[..., 0] > 0).astype(int)], 2, "sample"),
    "split apart": (lambda x: jnp.split(x, 2, 1)[1], 0, "batch"),
    "top k": (lambda x: lax.top_k(x, 2)[0], 0, "batch"),
    "update": (lambda x: lax.dynamic_update_slice_in_dim(x, x[:, :1] * 2, 0, 1), 0, "batch"),
    "scatter": (lambda x: x.at[:, 0].add(1), 0, "batch"),
    "mapped": (lambda x: jax.vmap(lambda x: jnp.tanh(x) @ jnp.ones((4, 2)))(x), 0, "batch"),
    "scan over positions": (lambda x: lax.scan(lambda h, x: (h + x, h * x), x[:, 0], x.swapaxes(0, 1))[1], 1, "batch"),
    "scan's carry": (lambda x: lax.scan(lambda h, x: (h + x, None), x[:, 0], x.swapaxes(0, 1))[0], 0, "batch"),
    "scan over examples": (lambda x: lax.map(lambda x: jnp.tanh(x), x), 0, "batch"),
    "while": (lambda x: lax.while_loop(lambda x: x.sum() < 9, lambda x: jnp.tanh(x) + 1, x), 0, "batch"),
    "triangular": (lambda x: lax.linalg.triangular_solve(jnp.broadcast_to(jnp.eye(6), (8, 6, 6)), x, left_side=True), 0, "batch"),
    "devices": (lambda x: jax.shard_map(jnp.tanh, mesh=MESH, in_specs=SPREAD, out_specs=SPREAD)(x), 0, "batch"),
}  # fmt: skip
MESH, SPREAD = Mesh(np.array(jax.devices()[:4]), ("data",)), PartitionSpec("data")


@pytest.mark.parametrize("name", MOVES)
def test_the_axis_of_the_examples_is_followed(name: str) -> None:
    move, axis, kind = MOVES[name]
    assert norm_of(lambda x: standardize(move(x) * 2, (axis,)), kind=kind).axes == {axis}


def test_every_layer_is_followed() -> None:
    for case in cases.CASES:
        arguments = case.arguments()
        stats = {name: arguments[name] for name in ("state", "constants") if name in arguments}
        params = {name: value for name, value in arguments.items() if name not in ("x", *stats)}
        call = partial(_call, case)
        found = followed(call, params=params, stats=stats, x=arguments["x"])
        assert bool(found.noises) == case.is_random, case.name
        assert all(noise.sure and noise.ours == case.function.__name__ for noise in found.noises), case.name
        assert not any(draw.constant for draw in found.draws), case.name
        kinds = {norm.kind for norm in found.norms}
        assert kinds == KINDS.get(case.name, KINDS.get(case.function.__name__, kinds)), case.name


def _call(case: cases.Case, key: Any, params: Any, stats: Any, x: Any) -> Any:
    return case(key, {**params, **stats, "x": x})


KINDS = {
    "batch_norm": {"batch"},
    "batch_norm-infer": {"averages"},
    "batch_renorm": {"batch"},
    "batch_renorm-infer": {"averages"},
    "ghost_batch_norm": {"batch"},
    "ghost_batch_norm-infer": {"averages"},
    "conditional_batch_norm": {"batch"},
    "conditional_batch_norm-infer": {"averages"},
    "domain_batch_norm": {"batch"},
    "domain_batch_norm-infer": {"averages"},
    "split_batch_norm": {"batch"},
    "split_batch_norm-infer": {"averages"},
    "lp_batch_norm": {"batch"},
    "lp_batch_norm-infer": {"averages"},
    "frozen_batch_norm": {"averages"},
    "layer_norm": {"sample"},
    "rms_norm": {"sample"},
    "group_norm": {"sample"},
    "instance_norm": {"sample"},
    "tracked_instance_norm": {"sample"},
    "tracked_instance_norm-infer": {"averages"},
    "unit_norm": {"sample"},
    "dropout": set(),
    "gaussian_dropout": set(),
    "zoneout": set(),
    "maxout": set(),
}


# Averages, scales, and what is done to the statistics.


def batch_norm(params: Any, stats: Any, x: jax.Array, train: bool = True, momentum: float = 0.9) -> tuple[jax.Array, Any]:
    mean, var = (x.mean((0, 1)), x.var((0, 1))) if train else (stats["mean"], stats["var"])
    y = (x - mean) * lax.rsqrt(var + EPSILON) * params["scale"] + params["bias"]
    new = {"mean": momentum * stats["mean"] + (1 - momentum) * mean, "var": stats["var"] + 0.1 * (var - stats["var"])}
    return y, new if train else stats


def layer(params: Any, stats: Any, x: jax.Array, train: bool = True) -> tuple[jax.Array, Any]:
    h = x @ params["dense"]["kernel"] + params["dense"]["bias"]
    y, new = batch_norm(params["norm"], stats["norm"], h, train)
    return jax.nn.relu(y), {"norm": new}


def test_a_batch_norm_in_training() -> None:
    found = followed(lambda key, params, stats, x: layer(params, stats, x))
    (norm,) = found.norms
    assert norm.averages == ("stats/norm/mean", "stats/norm/var")
    assert norm.params == ("params/norm/bias", "params/norm/scale")
    assert norm.before == ("params/dense/bias",)
    assert norm.where.path == "norm"
    assert norm.where.line.startswith("test_lint_following.py:")
    assert norm.where.line.endswith("in batch_norm")
    assert norm.library == ""
    outputs, mean, var = found.values
    assert outputs.mixes
    assert outputs.examples == {0}
    numbers = {path: number for number, path in enumerate(found.paths)}
    assert mean.averages == {(numbers["stats/norm/mean"], True)}
    assert var.averages == {(numbers["stats/norm/var"], True)}
    assert not found.updated_in_loops


def test_a_batch_norm_in_inference() -> None:
    found = followed(lambda key, params, stats, x: layer(params, stats, x, train=False))
    (norm,) = found.norms
    assert norm.kind == "averages"
    assert norm.averages == ("stats/norm/var",)
    assert norm.params == ("params/norm/bias", "params/norm/scale")
    assert norm.axes == {0, 1}
    assert norm.epsilon == pytest.approx(EPSILON)
    assert not found.values[0].mixes
    assert {count for _, count in found.values[1].averages} == {False}


def test_a_layer_is_named_by_its_averages_where_it_has_no_parameters() -> None:
    def centered(key: Any, params: Any, stats: Any, x: Any) -> Any:
        mean, var = (stats[f"net/norm/~/{name}_ema"]["average"] for name in ("mean", "var"))
        return (x - mean) * lax.rsqrt(var + EPSILON)

    stats = {f"net/norm/~/{name}_ema": {"average": jnp.ones(4)} for name in ("mean", "var")}  # as Haiku does
    (norm,) = followed(centered, stats=stats).norms
    assert norm.where.path == "net/norm"


def test_averages_may_be_of_deviations() -> None:
    found = followed(lambda key, params, stats, x: (x - stats["norm"]["mean"]) / stats["norm"]["var"])
    assert [(norm.kind, norm.averages) for norm in found.norms] == [("averages", ("stats/norm/var",))]


def test_a_shared_norm_updates_its_averages_twice() -> None:
    def shared(key: Any, params: Any, stats: Any, x: Any) -> Any:
        x, stats = layer(params, stats, x)
        return layer(params, stats, x)

    found = followed(shared)
    assert [norm.averages for norm in found.norms] == [("stats/norm/mean", "stats/norm/var")] * 2
    assert not found.updated_in_loops


def test_averages_that_one_branch_updates() -> None:
    def sometimes(key: Any, params: Any, stats: Any, x: Any) -> Any:
        return lax.cond(x.sum() > 0, layer, lambda params, stats, x: (x, stats), params, stats, x)

    found = followed(sometimes)
    numbers = {path: number for number, path in enumerate(found.paths)}
    assert found.values[1].averages == {(numbers["stats/norm/mean"], True)}


def test_a_loop_updates_averages_in_each_step() -> None:
    def repeated(key: Any, params: Any, stats: Any, x: Any) -> Any:
        return lax.fori_loop(0, 3, lambda _, carry: layer(params, carry[1], carry[0]), (x, stats))

    found = followed(repeated)
    assert {path for path, _ in found.updated_in_loops} == {"stats/norm/mean", "stats/norm/var"}
    assert len(found.norms) == 1


def test_layers_in_a_scan_have_averages_of_their_own() -> None:
    def stacked(key: Any, params: Any, stats: Any, x: Any) -> Any:
        return lax.scan(lambda x, own: layer(own[0], own[1], x), x, (params, stats))

    stack = partial(jax.tree.map, lambda part: jnp.stack([part] * 3))
    found = followed(stacked, params=stack(PARAMS), stats=stack(STATS))
    (norm,) = found.norms
    assert norm.averages == ("stats/norm/mean", "stats/norm/var")
    assert norm.params == ("params/norm/bias", "params/norm/scale")
    assert norm.before == ("params/dense/bias",)
    assert not found.updated_in_loops


def test_statistics_without_gradient() -> None:
    def stopped(x: jax.Array) -> jax.Array:
        mean, var = lax.stop_gradient((x.mean((0, 1)), x.var((0, 1))))
        return (x - mean) * lax.rsqrt(var + EPSILON)

    assert norm_of(stopped).stopped


def test_a_correction_without_gradient_leaves_statistics_theirs() -> None:
    def renormed(x: jax.Array) -> jax.Array:
        mean, var = x.mean((0, 1)), x.var((0, 1))
        r = lax.stop_gradient(jnp.clip(jnp.sqrt(var + EPSILON), 0.5, 2.0))
        return (x - mean) * lax.rsqrt(var / r**2 + EPSILON)

    assert not norm_of(renormed).stopped


@pytest.mark.parametrize("dtype, bits", [(jnp.bfloat16, 16), (jnp.float16, 16), (jnp.float32, 32)])
def test_types_of_statistics(dtype: Any, bits: int) -> None:
    def rounded(x: jax.Array) -> jax.Array:
        var = jnp.square(x - x.mean((0, 1))).mean((0, 1)).astype(dtype).astype(jnp.float32)
        return (x - x.mean((0, 1))) * lax.rsqrt(var + EPSILON)

    assert norm_of(rounded).bits == bits


def test_a_sum_in_16_bits() -> None:
    def summed(x: jax.Array) -> jax.Array:
        squares = jnp.square(x.astype(jnp.bfloat16) - x.mean((0, 1)).astype(jnp.bfloat16))
        var = lax.reduce_sum(squares, (0, 1)).astype(jnp.float32) / 48
        return (x - x.mean((0, 1))) * lax.rsqrt(var + EPSILON)

    assert norm_of(summed).bits == 16


def test_a_norm_after_a_norm() -> None:
    def twice(key: Any, params: Any, stats: Any, x: Any) -> Any:
        y, stats = batch_norm(params["norm"], stats["norm"], x)
        return standardize(2 * y.astype(jnp.float32) + 1), stats

    first, second = followed(twice).norms
    assert second.after == first.place
    assert first.after is None


@pytest.mark.parametrize("between", [jax.nn.relu, lambda x: x @ jnp.ones((4, 4)), lambda x: x + jnp.tanh(x)])
def test_what_stands_between_two_norms(between: Callable[[jax.Array], jax.Array]) -> None:
    found = followed(lambda key, params, stats, x: standardize(between(standardize(x))))
    assert [norm.after for norm in found.norms] == [None, None]


def test_norms_along_other_axes_may_follow_each_other() -> None:
    found = followed(lambda key, params, stats, x: standardize(standardize(x), (2,)))
    assert [norm.kind for norm in found.norms] == ["batch", "sample"]
    assert [norm.after for norm in found.norms] == [None, None]


def test_what_is_no_norm() -> None:
    def other(key: Any, params: Any, stats: Any, x: Any) -> Any:
        weights = params["dense"]["kernel"] * lax.rsqrt(jnp.square(params["dense"]["kernel"]).sum(0))  # of weights
        gated = x * jax.nn.sigmoid(x.mean(1, keepdims=True))  # squeeze and excite
        spread = jnp.concatenate([x, jnp.broadcast_to(jnp.sqrt(x.var(0)), x.shape)], -1)  # deviations as features
        counts = lax.reduce_window(
            jnp.ones_like(x), 0.0, lax.add, (1, 3, 1), (1, 1, 1), "SAME"
        )  # of a pool that leaves out padding
        scaled = (x - x.mean(0)) * jnp.sqrt(x.var(0) + EPSILON)
        return jax.nn.softmax(x @ weights), gated, spread, x / counts, scaled

    assert followed(other).norms == ()


# Devices.


def on_devices(function: Callable[[jax.Array], jax.Array]) -> Followed:
    mapped = jax.shard_map(function, mesh=MESH, in_specs=SPREAD, out_specs=SPREAD)
    return followed(lambda key, params, stats, x: mapped(x))


def of_all_devices(x: jax.Array, gather: bool = False) -> jax.Array:
    def pooled(part: jax.Array) -> jax.Array:
        return lax.all_gather(part, "data").mean(0) if gather else lax.pmean(part, "data")

    mean = pooled(x.mean((0, 1)))
    return (x - mean) * lax.rsqrt(pooled(jnp.square(x - mean).mean((0, 1))) + EPSILON)


def test_statistics_of_each_device() -> None:
    (norm,) = on_devices(standardize).norms
    assert (norm.kind, norm.spread, norm.elements) == ("batch", {"data"}, 2 * 6)
    (norm,) = followed(lambda key, params, stats, x: jax.pmap(standardize)(x), x=jnp.ones((4, 8, 6, 4))).norms
    assert (norm.kind, len(norm.spread), norm.elements) == ("batch", 1, 8 * 6)


@pytest.mark.parametrize("gather", [False, True])
def test_statistics_of_all_devices(gather: bool) -> None:
    (norm,) = on_devices(partial(of_all_devices, gather=gather)).norms
    assert (norm.kind, norm.spread) == ("batch", set())
    if not gather:
        assert norm.elements == 8 * 6


def test_what_all_devices_have_varies_from_one_to_the_other() -> None:
    gathered = jax.shard_map(lambda x: lax.all_gather(x.mean((0, 1, 2)), "data"), mesh=MESH, in_specs=SPREAD, out_specs=SPREAD)
    (value,) = followed(lambda key, params, stats, x: gathered(x)).values
    assert value.varies == {0}


# Noise.


def noise_of(function: Callable[[Any, jax.Array], Any], x: jax.Array = X) -> Followed:
    return followed(lambda key, params, stats, x: function(key, x), x=x)


@pytest.mark.parametrize(
    "function, kind",
    [
        (drop, "choice"),
        (lambda key, x: x * jax.random.bernoulli(key, 0.5, x.shape), "factor"),
        (lambda key, x: x * (1 + jax.random.normal(key, x.shape)), "factor"),
        (lambda key, x: x + jax.random.normal(key, x.shape), "added"),
        (lambda key, x: x - 0.1 * jax.random.uniform(key, x.shape), "added"),
        (lambda key, x: jnp.where(jax.random.uniform(key, x.shape) < jax.nn.sigmoid(x), 1.0, 0.0), "sampled"),
        (lambda key, x: x[jax.random.permutation(key, 8)], "sampled"),
    ],
)
def test_kinds_of_noise(function: Callable[[Any, jax.Array], Any], kind: str) -> None:
    found = noise_of(function)
    (noise,) = found.noises
    assert (noise.kind, noise.on, noise.shared, noise.library) == (kind, "data", False, "")
    assert noise.draws <= {draw.place for draw in found.draws}
    (arrival,) = found.values[0].noise
    assert arrival.noise == noise.place
    assert arrival.whole == (kind in ("factor", "choice"))
    assert not arrival.linear


def test_numbers_that_other_generators_draw() -> None:
    def other(key: Any, x: jax.Array) -> Any:
        bits = lax.rng_bit_generator(jnp.tile(jax.random.key_data(key), 2), x.shape)[1]
        return x * bits.astype(jnp.float32), x * jax.random.gamma(key, 2.0, x.shape)

    found = noise_of(other)
    assert [(noise.kind, noise.shared) for noise in found.noises] == [("factor", False)] * 2
    assert [len(value.noise) for value in found.values] == [1, 1]
    assert [draw.constant for draw in found.draws] == [False, False]


def test_noise_passes_linear_layers_and_sums() -> None:
    def ways(key: Any, params: Any, stats: Any, x: Any) -> Any:
        noisy = drop(key, x)
        return noisy * 2 + params["norm"]["bias"], noisy @ params["dense"]["kernel"], noisy + jnp.tanh(x), standardize(noisy), x

    found = followed(ways)
    passed = [[(arrival.linear, arrival.whole) for arrival in value.noise] for value in found.values]
    assert passed == [[(False, True)], [(True, False)], [(False, False)], [(False, False)], []]
    assert [arrival.linear for arrival in found.norms[0].noises] == [False]


def test_noise_on_weights() -> None:
    def drop_connect(key: Any, params: Any, stats: Any, x: Any) -> Any:
        return x @ drop(key, params["dense"]["kernel"])

    found = followed(drop_connect)
    assert [(noise.on, noise.shared) for noise in found.noises] == [("weights", False)]
    assert {arrival.linear for arrival in found.values[0].noise} == {True}


@pytest.mark.parametrize(
    "function, shared",
    [
        (lambda key, x: drop(key, x, (1, 6, 4)), True),
        (lambda key, x: drop(key, x, (6, 1)), True),
        (lambda key, x: jax.vmap(drop, (None, 0))(key, x), True),
        (lambda key, x: lax.map(partial(drop, key), x), True),
        (lambda key, x: jax.vmap(drop)(jax.random.split(key, 8), x), False),
        (lambda key, x: jax.vmap(drop)(jnp.broadcast_to(key, 8), x), True),
        (lambda key, x: lax.map(lambda own: drop(*own), (jax.random.split(key, 8), x)), False),
        (lambda key, x: jax.vmap(lambda own, x: drop(jax.random.split(own)[0], x))(jax.random.split(key, 8), x), False),
        (lambda key, x: jax.vmap(lambda own, x: drop(jax.random.key(own), x))(jnp.arange(8), x), False),
        (lambda key, x: jax.vmap(lambda own, x: drop(own, x))(jax.random.key_data(jax.random.split(key, 8)), x), False),
        (lambda key, x: jax.vmap(lambda own, x: jaxnorm.dropout(own, x, 0.5))(jax.random.split(key, 8), x), False),
        (lambda key, x: drop(key, x, (8, 1, 1)), False),
        (lambda key, x: drop(key, x, ()), False),
        (lambda key, x: x * jnp.concatenate([jax.random.uniform(own, (1, 6, 1)) for own in jax.random.split(key, 8)]), False),
        (lambda key, x: x * (jnp.broadcast_to(jax.random.bits(key, (1, 6, 4)), x.shape) >> 31), True),
        (lambda key, x: jax.vmap(lambda i, x: drop(jax.random.fold_in(key, i), x))(jnp.arange(8), x), False),
    ],
)
def test_a_mask_that_all_examples_share(function: Callable[[Any, jax.Array], Any], shared: bool) -> None:
    found = noise_of(function)
    assert [noise.shared for noise in found.noises] == [shared]


def keys_of(function: Callable[[Any, jax.Array], Any], raw: bool = False) -> list[int]:
    key = jax.random.PRNGKey(0) if raw else KEY
    return [draw.key for draw in followed(lambda key, params, stats, x: function(key, x), key=key).draws]


@pytest.mark.parametrize("raw", [False, True])
def test_keys_are_told_apart(raw: bool) -> None:
    def same(key: Any, x: Any) -> Any:
        return drop(key, x), drop(key, jnp.tanh(x))

    def same_folded(key: Any, x: Any) -> Any:
        return drop(jax.random.fold_in(key, 1), x), drop(jax.random.fold_in(key, 1), x[:4])

    def split(key: Any, x: Any) -> Any:
        first, second = jax.random.split(key)
        return drop(first, x), drop(second, x)

    def folded(key: Any, x: Any) -> Any:
        return drop(jax.random.fold_in(key, 1), x), drop(jax.random.fold_in(key, 2), x)

    for function, count in ((same, 1), (same_folded, 1), (split, 2), (folded, 2)):
        keys = keys_of(function, raw)
        assert (len(keys), len(set(keys))) == (2, count), function


def test_our_functions_use_a_key_up_once() -> None:
    def same(key: Any, x: Any) -> Any:
        return jaxnorm.dropout(key, x, 0.5), jaxnorm.gaussian_dropout(key, x, 0.5)

    for raw in (False, True):
        keys = keys_of(same, raw)
        assert (len(keys), len(set(keys))) == (2, 1)


def test_our_dropout_is_one_place_with_noise() -> None:
    found = noise_of(lambda key, x: jaxnorm.dropout(key, x, 0.5), x=jnp.ones((8, 16, 4)))  # products by ones, made of the key
    assert [(noise.kind, noise.ours) for noise in found.noises] == [("choice", "dropout")]


def test_keys_in_loops() -> None:
    def loop(step: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        return lambda key, x: lax.scan(lambda x, i: (step(jax.random.fold_in(key, i), key)(x), None), x, jnp.arange(3))[0]

    own = noise_of(loop(lambda own, _: partial(drop, own)))
    stored = noise_of(loop(lambda _, stored: partial(drop, stored)))
    carried = noise_of(lambda key, x: lax.fori_loop(0, 3, lambda _, c: (drop(c[1], c[0]), jax.random.split(c[1])[0]), (x, key)))
    kept = noise_of(lambda key, x: lax.fori_loop(0, 3, lambda _, c: (drop(c[1], c[0]), c[1]), (x, key)))
    split = noise_of(lambda key, x: lax.scan(lambda x, own: (drop(own, x), None), x, jax.random.split(key, 3))[0])
    repeated = [[draw.repeated_in_loop for draw in found.draws] for found in (own, stored, carried, kept, split)]
    assert repeated == [[False], [True], [False], [True], [False]]


def test_keys_that_come_from_nowhere() -> None:
    stored = jax.random.key(3)
    found = noise_of(lambda key, x: (drop(jax.random.key(1), x), drop(stored, x), drop(key, x)))
    assert [draw.constant for draw in found.draws] == [True, True, False]
    assert [draw.inputs for draw in found.draws] == [(), (), ("key",)]


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 1), (1, 2, 1), "VALID"),
        lambda x: x.reshape(8, 3, 2, 4).max(2),
    ],
)
def test_maxima_that_noise_reaches(pool: Callable[[jax.Array], jax.Array]) -> None:
    found = noise_of(lambda key, x: (pool(drop(key, x)), pool(x), jax.nn.softmax(drop(key, x))))
    (maximum,) = found.maxima
    assert [arrival.noise for arrival in maximum.noises] == [found.noises[0].place]


def test_a_primitive_that_is_not_known() -> None:
    strange = Primitive("strange")
    strange.def_abstract_eval(lambda x: x)
    function = lambda key, params, stats, x: standardize(strange.bind(drop(key, x)))  # noqa: E731
    found = follow(jax.make_jaxpr(function)(KEY, {}, {}, X), paths_of(KEY, {}, {}, X))
    assert found.unknown == ("strange",)
    assert [norm.sure for norm in found.norms] == [False]
    assert [(arrival.linear, arrival.whole) for arrival in found.norms[0].noises] == [(True, False)]
    assert found.callbacks == ()


def test_numbers_that_are_complex() -> None:
    found = followed(lambda key, params, stats, x: standardize((x * lax.complex(1.0, 2.0)).real))
    assert [norm.kind for norm in found.norms] == ["batch"]


def test_calls_of_the_host_are_named() -> None:
    def calling(key: Any, params: Any, stats: Any, x: Any) -> Any:
        jax.debug.print("{}", x.sum())
        return jax.pure_callback(np.tanh, x, x)

    found = follow(jax.make_jaxpr(calling)(KEY, {}, {}, X), paths_of(KEY, {}, {}, X))
    assert "pure_callback" in found.callbacks
    assert found.unknown == ()


def test_primitives_of_jax_are_known() -> None:
    """The names of primitives change with jax: those of usual functions must be known."""
    functions = [getattr(jnp, name) for name in _UNARY.split()] + [getattr(jax.nn, name) for name in _ACTIVATIONS.split()]
    for function in functions:
        closed = jax.make_jaxpr(function)(jnp.linspace(0.1, 0.9, 8).reshape(2, 4))
        assert follow(closed, ["x"]).unknown == (), function
    assert moves(jax.make_jaxpr(lambda x: lax.platform_dependent(x, cpu=jnp.sin, default=jnp.cos))(1.0).eqns[0]) == []


_UNARY = """
abs arccos arcsin arctan cbrt ceil cos cosh cumprod cumsum exp exp2 expm1 fabs flip floor isfinite isnan log log10 log1p log2 max
mean median min negative prod ravel reciprocal rint round sign sin sinh sort sqrt square std sum tan tanh transpose tril var
"""
_ACTIVATIONS = """
celu elu gelu glu hard_sigmoid hard_swish hard_tanh leaky_relu log_sigmoid log_softmax mish relu relu6 selu sigmoid silu soft_sign
softmax softplus sparse_plus squareplus standardize swish logsumexp
"""
