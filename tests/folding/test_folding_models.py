"""Whole linen and nnx models without batch norm: equal outputs, nothing left in the program, and what is left and why."""

import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import freeze
from jax.sharding import NamedSharding, PartitionSpec
from numpy.testing import assert_allclose

import jaxnorm.linen
import jaxnorm.nnx
from jaxnorm.folding import FoldReport, NormFold

X = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))


class Net(nn.Module):
    """A linen model from a function of x that makes its layers as it goes."""

    body: Callable[[jax.Array], Any]

    @nn.compact
    def __call__(self, x: jax.Array) -> Any:
        return self.body(x)


def norm(**fields: Any) -> nn.BatchNorm:
    return nn.BatchNorm(use_running_average=True, **fields)


def own_norm(**fields: Any) -> jaxnorm.linen.BatchNorm:
    return jaxnorm.linen.BatchNorm(use_running_average=True, **fields)


def variables_of(net: nn.Module, x: jax.Array, **arguments: Any) -> Any:
    """Variables of which no norm's do nothing, made without running the model."""
    random = np.random.default_rng(0)

    def filled(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name, values = str(path), random.normal(size=leaf.shape)
        if "var" in name:
            values = random.uniform(0.3, 2, leaf.shape)
        elif "scale" in name:
            values = 1 + 0.5 * values
        elif "kernel" in name:
            values = values / max(1, np.prod(leaf.shape[:-1])) ** 0.5
        return jnp.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(filled, jax.eval_shape(lambda: net.init(jax.random.key(1), x, **arguments)))


def folded_net(body: Callable[[jax.Array], Any], x: jax.Array = X, **options: Any) -> tuple[Any, Any, FoldReport, Any]:
    """The model without its norms, its variables, the report, and what the model itself gives."""
    net = Net(body)
    variables = variables_of(net, x)
    return *jaxnorm.linen.fold(net, variables, x, **options), jax.jit(net.apply)(variables, x)


def check(body: Callable[[jax.Array], Any], x: jax.Array = X, *, adds: bool = False, layer: str | None = None) -> Any:
    """That the one norm of a model is folded; returns the variables."""
    folded, variables, report, expected = folded_net(body, x)
    assert [(one.reason, one.adds) for one in report.norms] == [("", adds)], str(report)
    assert layer is None or report.norms[0].layer == layer
    assert "batch_stats" not in variables
    assert_allclose(jax.jit(folded.apply)(variables, x), expected, rtol=1e-5, atol=1e-5)
    return variables


# after a layer


@pytest.mark.parametrize("batch_norm", [norm, own_norm])
@pytest.mark.parametrize("use_bias", [False, True])
def test_after_a_convolution(use_bias: bool, batch_norm: Any) -> None:
    variables = check(
        lambda x: nn.relu(batch_norm()(nn.Conv(4, (3, 3), use_bias=use_bias)(x))), adds=not use_bias, layer="Conv_0"
    )
    names = {name: sorted(own) for name, own in variables["params"].items()}
    if use_bias:
        assert names == {"Conv_0": ["bias", "kernel"]}
    else:
        assert sorted(names) == [name := next(n for n in sorted(names) if "Norm" in n), "Conv_0"]
        assert names[name] == ["bias"]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Dense(4),
        nn.DenseGeneral((4,), axis=(-2, -1)),
        nn.Conv(6, (3, 3), feature_group_count=3, strides=2),
        nn.ConvTranspose(4, (3, 3), strides=(2, 2), transpose_kernel=True),
        nn.Einsum((3, 5), "...c,cf->...f"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_after_layers_of_all_kinds(layer: Any) -> None:
    check(lambda x: norm()(layer.copy()(x)))


def test_what_a_factor_passes_on_the_way_back() -> None:
    def body(x: jax.Array) -> jax.Array:
        x = nn.Conv(4, (3, 3))(x)
        x = nn.avg_pool(x, (2, 2), (2, 2), padding="SAME", count_include_pad=False)
        x = x.astype(jnp.float32)[:, ::-1, 1:].mean(1)
        return norm(axis=1)(x.transpose(0, 2, 1).reshape(2, 4, 3))

    check(body, adds=True)


def test_a_norm_within_which_an_activation_and_a_residual_are() -> None:
    check(lambda x: own_norm(activation=nn.relu)(nn.Dense(3)(x), residual=x))


def test_layers_and_norms_that_are_shared() -> None:
    def body(x: jax.Array) -> jax.Array:
        dense, shared = nn.Dense(3), norm()
        x = nn.relu(shared(dense(x)))
        return nn.relu(shared(dense(x)))

    check(body)


def test_one_norm_of_two_layers() -> None:
    def body(x: jax.Array) -> jax.Array:
        shared = norm()
        return nn.relu(shared(nn.Dense(4)(x))) + nn.relu(shared(nn.Dense(4)(x)))

    check(body, layer="Dense_0, Dense_1")


def test_kernels_that_are_masked_or_normalized_themselves() -> None:
    mask = jnp.ones((3, 3, 3, 4)).at[0].set(0)
    check(lambda x: norm()(nn.Conv(4, (3, 3), mask=mask)(x)))
    variables = check(lambda x: norm()(nn.WeightNorm(nn.Dense(4))(x)))
    assert np.any(np.asarray(variables["params"]["WeightNorm_0"]["Dense_0/kernel/scale"]) != 1)


def test_layers_within_jit_and_remat() -> None:
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return nn.relu(norm()(nn.Dense(4)(x)))

    def body(x: jax.Array) -> jax.Array:
        return nn.remat(Block)()(nn.jit(Block)()(x))

    folded, variables, report, expected = folded_net(body)
    assert not report.left
    assert_allclose(jax.jit(folded.apply)(variables, X), expected, rtol=1e-5, atol=1e-5)


class Normed(nn.Module):
    """A dense layer and a batch norm."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return norm()(nn.Dense(4)(x))


def test_a_part_that_was_compiled_before_is_folded_and_left_as_it_was() -> None:
    compiled = nn.jit(Normed)
    net = Net(lambda x: nn.relu(compiled()(x)))
    variables = variables_of(net, X)
    expected = net.apply(variables, X)
    folded, new, report = jaxnorm.linen.fold(net, variables, X)
    assert not report.left
    assert_allclose(folded.apply(new, X), expected, rtol=1e-5, atol=1e-5)
    assert_allclose(net.apply(variables, X), expected, rtol=1e-6)


def test_parts_that_are_fields_or_made_in_setup() -> None:
    class Outer(nn.Module):
        part: nn.Module

        def setup(self) -> None:
            self.own = [nn.Dense(4), norm()]

        def __call__(self, x: jax.Array) -> jax.Array:
            x = nn.relu(self.part(x))
            return nn.relu(self.own[1](self.own[0](x)))

    net = Outer(nn.Sequential([nn.Conv(4, (3, 3)), norm()]))
    variables = variables_of(net, X)
    folded, new, report = jaxnorm.linen.fold(net, variables, X)
    assert [(one.norm, one.layer) for one in report.folded] == [("part/layers_1", "part/layers_0"), ("own_1", "own_0")]
    assert_allclose(jax.jit(folded.apply)(new, X), jax.jit(net.apply)(variables, X), rtol=1e-5, atol=1e-5)

    around = nn.Sequential([folded, jnp.negative])  # a folded model is a module as others are
    found = jax.jit(around.apply)({"params": {"layers_0": new["params"]}}, X)
    assert_allclose(-found, jax.jit(net.apply)(variables, X), rtol=1e-5, atol=1e-5)


# before a layer


def test_before_a_dense_layer() -> None:
    check(lambda x: nn.Dense(4)(norm()(x)), layer="Dense_0")
    check(lambda x: nn.Dense(4, use_bias=False)(norm()(x)), adds=True)
    check(lambda x: nn.DenseGeneral((2, 4), axis=(-2, -1))(norm()(x)))


def test_before_a_convolution_that_pads_nothing() -> None:
    check(lambda x: nn.Conv(4, (3, 3), padding="VALID", strides=2)(norm()(x)))
    check(lambda x: nn.Conv(6, (3, 3), padding="VALID", feature_group_count=3)(own_norm()(x)))


def test_before_a_convolution_that_pads_the_borders_are_right() -> None:
    check(lambda x: nn.Conv(4, (3, 3))(norm()(x)), adds=True)
    check(lambda x: nn.ConvTranspose(4, (3, 3), strides=(2, 2), transpose_kernel=True)(norm()(x)), adds=True)
    check(lambda x: nn.Conv(4, (3, 3), padding="VALID")(jnp.pad(norm()(x), ((0, 0), (1, 1), (0, 1), (0, 0)))), adds=True)


def test_a_factor_of_zero() -> None:
    """A channel that is its bias alone: the bias of the layer takes it, an addition before the layer cannot."""

    def fold(layer: Any) -> Any:
        net = Net(lambda x: layer.copy()(norm()(x)))
        variables = variables_of(net, X)
        variables["params"]["BatchNorm_0"]["scale"] = jnp.array([1.0, 0.0, -1.0])
        return *jaxnorm.linen.fold(net, variables, X), net.apply(variables, X)

    folded, variables, report, expected = fold(nn.Conv(4, (3, 3), padding="VALID"))
    assert report.folded
    assert_allclose(jax.jit(folded.apply)(variables, X), expected, rtol=1e-5, atol=1e-5)
    _, _, report, _ = fold(nn.Conv(4, (3, 3)))
    assert "which is" in report.norms[0].reason
    assert "in channel 1, where the factor is 0" in report.norms[0].reason


def test_norms_on_both_sides_of_a_layer() -> None:
    folded, variables, report, expected = folded_net(lambda x: norm()(nn.Conv(6, (3, 3), feature_group_count=3)(norm()(x))))
    assert [(one.layer, one.order, one.adds) for one in report.norms] == [("Conv_0", "before", True), ("Conv_0", "after", False)]
    assert_allclose(jax.jit(folded.apply)(variables, X), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch_norm", [nn.BatchNorm, jaxnorm.linen.BatchNorm])
def test_arguments_of_the_call_of_a_norm(batch_norm: Any) -> None:
    mask = jnp.arange(2)[:, None, None, None] < 1
    check(lambda x: batch_norm()(nn.Dense(4)(x), True, mask=mask))

    class Masked(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            own = nnx.BatchNorm if batch_norm is nn.BatchNorm else jaxnorm.nnx.BatchNorm
            self.dense, self.norm = nnx.Linear(3, 3, rngs=rngs), own(3, rngs=rngs)

        def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
            return self.norm(self.dense(x), True, mask=mask)

    net = Masked(nnx.Rngs(0))
    folded, report = jaxnorm.nnx.fold(net, X, mask=mask)
    assert report.folded
    assert_allclose(folded(X, mask), net(X, mask), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="the batch norm norm must use its running statistics, got use_running_average=False"):
        folded.norm(X, False)


# loops


class Turn(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        x = nn.Dense(3)(own_norm()(x))
        return nn.relu(norm()(nn.Dense(3, use_bias=False)(nn.relu(x)))), None


def loop(x: jax.Array, **variables: Any) -> jax.Array:
    split = {"params": "params" in variables["variable_axes"]}
    return nn.scan(Turn, length=3, split_rngs=split, **variables)()(x, None)[0]


@pytest.mark.parametrize(
    "variables",
    [
        {"variable_axes": {"params": 0, "batch_stats": 0}},
        {"variable_axes": {}, "variable_broadcast": ("params", "batch_stats")},
    ],
    ids=["of each turn", "of all turns"],
)
def test_in_a_loop(variables: dict[str, Any]) -> None:
    folded, new, report, expected = folded_net(lambda x: loop(x, **variables))
    assert [one.layer for one in report.folded] == ["ScanTurn_0/Dense_0", "ScanTurn_0/Dense_1"], str(report)
    assert_allclose(jax.jit(folded.apply)(new, X), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "variables",
    [
        {"variable_axes": {"params": 0}, "variable_broadcast": "batch_stats"},
        {"variable_axes": {"params": 1, "batch_stats": 0}},
        {"variable_axes": {"params": 0, "batch_stats": 1}},
    ],
    ids=["both", "second axis", "second axis of statistics"],
)
def test_variables_of_a_loop_that_are_not_alike_are_left(variables: dict[str, Any]) -> None:
    """Whose shapes tell nothing here, with as many turns as channels."""
    net = Net(lambda x: loop(x, **variables))
    values = variables_of(net, X)
    _, new, report = jaxnorm.linen.fold(net, values, X)
    assert not report.folded
    assert "not stacked alike" in report.left[0].reason
    jax.tree.map(np.testing.assert_array_equal, new, values)


@pytest.mark.slow
def test_in_a_loop_of_nnx() -> None:
    class Part(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.dense = nnx.Linear(3, 3, use_bias=False, rngs=rngs)
            self.norm = jaxnorm.nnx.BatchNorm(3, use_running_average=True, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return nnx.relu(self.norm(self.dense(x)))

    class Stack(nnx.Module):
        def __init__(self) -> None:
            self.parts = nnx.vmap(lambda key: Part(nnx.Rngs(key)))(jax.random.split(jax.random.key(0), 4))
            self.parts.norm.mean[...] = jax.random.normal(jax.random.key(1), (4, 3))

        def __call__(self, x: jax.Array) -> jax.Array:
            return nnx.scan(lambda part, x: part(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)(self.parts, x)

    net = Stack()
    folded, report = jaxnorm.nnx.fold(net, X)
    assert report.norms == (NormFold("parts/norm", "parts/dense", "after", adds=True),)
    assert_allclose(folded(X), net(X), rtol=1e-5, atol=1e-5)


# what is left, and why


class BiasOfThree(nn.Module):
    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param("bias", nn.initializers.zeros, (3,))


LEFT: dict[str, tuple[Callable[[jax.Array], Any], str]] = {
    "activation between": (
        lambda x: nn.relu(norm()(nn.relu(nn.Dense(4)(x)))),
        r"relu \(max\) is between it and the layer before; relu \(max\) is between it and the layer after",
    ),
    "no layer": (lambda x: norm()(x), "no layer is before it; no layer is after it"),
    "used twice": (lambda x: (lambda y: norm()(y) + y)(nn.Dense(4)(x)), "what comes before it is used elsewhere too; add is"),
    "given back too": (lambda x: (lambda y: (norm()(y), y))(nn.Dense(4)(x)), "used elsewhere too; no layer is after it"),
    "after a sum": (lambda x: nn.relu(norm()(x + nn.Dense(3)(x))), "a sum that adds no bias is between"),
    "after a sum with constants": (
        lambda x: norm()(nn.Dense(4)(x) + jnp.arange(4.0)[None, None, None]),
        "a sum that adds no bias is between",
    ),
    "a bias twice": (
        lambda x: (lambda own: norm()(x + own[None, None, None] + own[None, None, None]))(BiasOfThree()()),
        "a bias is added twice",
    ),
    "norm after norm": (lambda x: norm()(norm()(x)), "a batch norm is before it"),
    "before two layers": (lambda x: (lambda y: nn.Dense(4)(y) + nn.Dense(4)(y))(norm()(x)), "used more than once"),
    "no kernel": (lambda x: norm()(x @ x.swapaxes(-1, -2)), "no kernel of its own with an output for each channel"),
    "max pooling": (
        lambda x: norm()(nn.max_pool(nn.Dense(4)(x), (2, 2))),
        "reduce_window_max is between it and the layer before",
    ),
    "other axis": (
        lambda x: norm(axis=1)(nn.Conv(4, (3, 3), use_bias=False)(x)),
        "its channels are not the features of the convolution before",
    ),
    "several axes": (lambda x: norm(axis=(1, 2, 3))(nn.Conv(4, (3, 3))(x)), "it has several axes of channels"),
    "activation within": (lambda x: nn.Dense(4)(own_norm(activation=nn.relu)(x)), "an activation or a residual is within it"),
    "spectral norm": (lambda x: norm()(nn.SpectralNorm(nn.Dense(4))(x, update_stats=False)), "Dense_0/kernel is used elsewhere"),
    "flattened": (lambda x: nn.Dense(4)(norm()(x).reshape(2, -1)), "reshape is between it and the layer after"),
    "vmap": (
        lambda x: nn.vmap(nn.BatchNorm, variable_axes={"params": 0, "batch_stats": 0}, split_rngs={"params": True})(
            use_running_average=True
        )(nn.Dense(4)(x)),
        "mapped by vmap",
    ),
    "statistics given back": (
        lambda x: (lambda own: (own(nn.Dense(4)(x)), own.get_variable("batch_stats", "mean")))(norm()),
        "its parameters or statistics are used elsewhere too",
    ),
    "unused": (lambda x: (norm()(nn.Dense(4)(x)), x)[1], "no output of the model depends on it"),
}


@pytest.mark.parametrize("kind", LEFT)
def test_what_is_left_is_said_and_as_it_was(kind: str) -> None:
    body, reason = LEFT[kind]
    net = Net(body)
    variables = variables_of(net, X)
    folded, new, report = jaxnorm.linen.fold(net, variables, X)
    assert len(report.left) == len(report.norms)
    assert re.search(reason, report.left[-1].reason), report.left[-1].reason
    assert report.left[-1].reason in str(report)
    assert not folded.norms
    jax.tree.map(np.testing.assert_array_equal, new, variables)


def test_a_layer_that_has_other_uses_is_left() -> None:
    def body(x: jax.Array) -> jax.Array:
        dense = nn.Dense(3)
        return nn.relu(norm()(dense(x))) + dense(nn.relu(x))

    _, _, report, _ = folded_net(body)
    assert "Dense_0/bias is used elsewhere too" in report.norms[0].reason


def test_subclasses_that_call_otherwise_are_no_norm() -> None:
    class Other(nn.BatchNorm):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return jnp.abs(super().__call__(x))

    with pytest.raises(ValueError, match="the model calls no batch norm that could be folded"):
        folded_net(lambda x: Other(use_running_average=True)(nn.Dense(4)(x)))


def test_chosen_paths() -> None:
    def body(x: jax.Array) -> jax.Array:
        x = nn.relu(norm()(nn.Dense(4)(x)))
        x = nn.relu(norm()(nn.Dense(4)(x)))
        return nn.relu(norm()(x))

    _, variables, report, _ = folded_net(body, paths=["BatchNorm_1"])
    assert [one.norm for one in report.folded] == ["BatchNorm_1"]
    assert report.left[0] == NormFold("BatchNorm_0", reason="it is not among the paths")
    assert sorted(variables["batch_stats"]) == ["BatchNorm_0", "BatchNorm_2"]
    with pytest.raises(ValueError, match="the batch norm BatchNorm_2 cannot be folded: relu"):
        folded_net(body, paths=["BatchNorm_2"])
    with pytest.raises(TypeError, match="paths must be a sequence of paths, or None, got 'BatchNorm_1'"):
        folded_net(body, paths="BatchNorm_1")
    with pytest.raises(ValueError, match=r"paths must be of batch norms that the model calls, BatchNorm_0, .* got Norm_7"):
        folded_net(body, paths=["Norm_7"])


# a whole network, in both


class LinenBlock(nn.Module):
    features: int
    strides: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        def batch_norm() -> Any:
            return own_norm() if not train else jaxnorm.linen.BatchNorm(use_running_average=False)

        y = nn.relu(batch_norm()(nn.Conv(self.features, (3, 3), self.strides, use_bias=False)(x)))
        y = nn.relu(batch_norm()(nn.Conv(self.features, (3, 3), feature_group_count=2, use_bias=False)(y)))
        y = batch_norm()(nn.Conv(self.features, (1, 1), use_bias=False)(y))
        if x.shape != y.shape:
            x = batch_norm()(nn.Conv(self.features, (1, 1), self.strides, use_bias=False)(x))
        return nn.relu(x + y)


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3))(x)))
        x = LinenBlock(4)(x, train=train)
        x = LinenBlock(8, 2)(x, train=train)
        x = nn.Dropout(0.5, deterministic=not train)(nn.BatchNorm(use_running_average=not train)(x.mean((1, 2))))
        return nn.Dense(5)(x)


class NnxBlock(nnx.Module):
    def __init__(self, inputs: int, features: int, strides: int = 1, *, rngs: nnx.Rngs):
        sizes = [(inputs, (3, 3), strides, 1), (features, (3, 3), 1, 2), (features, (1, 1), 1, 1)]
        self.convs = nnx.List(
            nnx.Conv(own, features, kernel, strides=stride, feature_group_count=groups, use_bias=False, rngs=rngs)
            for own, kernel, stride, groups in sizes
        )
        self.norms = nnx.List(jaxnorm.nnx.BatchNorm(features, rngs=rngs) for _ in sizes)
        self.shortcut = nnx.data(None)
        if inputs != features:
            conv = nnx.Conv(inputs, features, (1, 1), strides=strides, use_bias=False, rngs=rngs)
            self.shortcut = nnx.Sequential(conv, nnx.BatchNorm(features, rngs=rngs))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x
        for number, (conv, batch_norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = batch_norm(conv(y))
            y = y if number == 2 else nnx.relu(y)
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class NnxNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.BatchNorm(3, rngs=rngs)
        self.stem = nnx.Sequential(nnx.Conv(3, 4, (3, 3), rngs=rngs), nnx.BatchNorm(4, rngs=rngs), nnx.relu)
        self.blocks = nnx.data([NnxBlock(4, 4, rngs=rngs), NnxBlock(4, 8, 2, rngs=rngs)])
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(8, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.stem(self.first(x))
        for block in self.blocks:
            x = block(x)
        return self.head(self.dropout(self.norm(x.mean((1, 2)))))


@pytest.fixture(scope="module")
def linen_net() -> tuple[Any, Any]:
    net = LinenNet()
    return net, variables_of(net, X, train=False)


@pytest.fixture(scope="module")
def nnx_net() -> Any:
    net, random = NnxNet(nnx.Rngs(0)), np.random.default_rng(0)
    for _, module in nnx.iter_modules(net):
        if isinstance(module, nnx.BatchNorm | jaxnorm.nnx.BatchNorm):
            for variable in (module.scale, module.bias, module.mean):
                variable[...] += jnp.asarray(0.7 * random.normal(size=variable.shape), jnp.float32)
            module.var[...] = jnp.asarray(random.uniform(0.3, 2, module.var.shape), jnp.float32)
    net.eval()
    return net


def assert_program_without_norms(function: Callable[..., Any], variables: Any, norms: int) -> None:
    """In the program that is exported, and in the one that is compiled: no root, and arguments for no statistics."""
    exported = jax.export.export(jax.jit(function))(variables, X)
    assert "rsqrt" not in exported.mlir_module()
    assert "sqrt" not in jax.jit(function).lower(variables, X).compile().as_text()
    assert len(exported.in_avals) == norms
    again = jax.export.deserialize(exported.serialize())
    assert_allclose(again.call(variables, X), function(variables, X), rtol=1e-5, atol=1e-5)


def test_a_linen_network_and_its_program(linen_net: Any) -> None:
    net, variables = linen_net
    before = jax.tree.map(np.array, variables)
    expected = net.apply(variables, X, train=False)
    assert "rsqrt" in jax.jit(lambda v: net.apply(v, X, train=False)).lower(variables).as_text()
    folded, new, report = jaxnorm.linen.fold(net, variables, X, train=False)
    assert not report.left, str(report)
    assert len(report.norms) == 10
    assert_allclose(folded.apply(new, X, train=False), expected, rtol=1e-5, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, before, variables)
    assert "batch_stats" not in new
    assert_program_without_norms(lambda v, x: folded.apply(v, x, train=False), new, len(jax.tree.leaves(new)) + 1)


def test_an_nnx_network_and_its_program(nnx_net: Any) -> None:
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(nnx_net, (nnx.Param, nnx.BatchStat))))
    expected = nnx_net(X)
    folded, report = jaxnorm.nnx.fold(nnx_net, X)
    assert not report.left, str(report)
    assert len(report.norms) == 10
    assert_allclose(folded(X), expected, rtol=1e-5, atol=1e-5)
    after = nnx.to_pure_dict(nnx.state(nnx_net, (nnx.Param, nnx.BatchStat)))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert not jax.tree.leaves(nnx.state(folded, nnx.BatchStat))
    folded.head.bias[...] += 1
    assert_allclose(nnx_net(X), expected)
    folded.head.bias[...] -= 1
    graphdef, params, rest = nnx.split(folded, nnx.Param, ...)
    leaves, tree = jax.tree.flatten(params)
    run = lambda leaves, x: nnx.merge(graphdef, jax.tree.unflatten(tree, leaves), rest)(x)  # noqa: E731
    assert_program_without_norms(run, leaves, len(leaves) + 1)


def test_shared_parts_of_an_nnx_model_stay_shared() -> None:
    class Shared(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.dense, self.norm = nnx.Linear(3, 3, rngs=rngs), nnx.BatchNorm(3, use_running_average=True, rngs=rngs)
            self.same, self.first = self.norm, nnx.data({"dense": self.dense})

        def __call__(self, x: jax.Array) -> jax.Array:
            return nnx.relu(self.same(self.dense(nnx.relu(self.norm(self.first["dense"](x))))))

    net = Shared(nnx.Rngs(0))
    net.norm.mean[...] = jnp.array([1.0, 2.0, -1.0])
    folded, report = jaxnorm.nnx.fold(net, X)
    assert len(report.folded) == len(report.norms) == 1
    assert folded.norm is folded.same
    assert folded.dense is folded.first["dense"]
    assert_allclose(folded(X), net(X), rtol=1e-5, atol=1e-6)


# variables as they come


@pytest.mark.jax_defaults
def test_half_weights_keep_their_type() -> None:
    def body(x: jax.Array) -> jax.Array:
        return norm(dtype=jnp.float16)(nn.Dense(4, dtype=jnp.float16, param_dtype=jnp.float16)(x))

    folded, variables, report, expected = folded_net(body, X.astype(jnp.float16))
    assert not report.left
    y = folded.apply(variables, X.astype(jnp.float16))
    assert y.dtype == expected.dtype == variables["params"]["Dense_0"]["kernel"].dtype == jnp.float16
    assert_allclose(np.float32(y), np.float32(expected), rtol=0.01, atol=0.01)


@pytest.mark.jax_defaults
def test_types_of_outputs_stay() -> None:
    x = X.astype(jnp.bfloat16)
    folded, variables, _, expected = folded_net(lambda x: norm()(nn.Dense(4, dtype=jnp.bfloat16)(x)), x)
    assert folded.apply(variables, x).dtype == expected.dtype == jnp.float32


@pytest.mark.jax_defaults
def test_a_weight_that_overflows_is_left() -> None:
    net = Net(lambda x: norm()(nn.Dense(3, param_dtype=jnp.float16)(x)))
    variables = variables_of(net, X)
    variables["batch_stats"]["BatchNorm_0"]["var"] = jnp.zeros(3)
    variables["params"]["Dense_0"]["kernel"] = jnp.full((3, 3), 6e4, jnp.float16)
    _, new, report = jaxnorm.linen.fold(net, variables, X)
    assert report.norms[0].reason == "Dense_0/kernel would not be finite in float16"
    jax.tree.map(np.testing.assert_array_equal, new, variables)


def test_partitioned_variables_and_frozen_dicts() -> None:
    init = nn.with_partitioning(nn.initializers.lecun_normal(), ("x", "y"))
    net = Net(lambda x: norm()(nn.Dense(4, kernel_init=init, use_bias=False)(x)))
    variables = freeze(variables_of(net, X))
    folded, new, report = jaxnorm.linen.fold(net, variables, X)
    assert report.norms == (NormFold("BatchNorm_0", "Dense_0", "after", adds=True),)
    assert isinstance(new, type(variables))
    assert new["params"]["Dense_0"]["kernel"].names == ("x", "y")
    assert_allclose(folded.apply(new, X), net.apply(variables, X), rtol=1e-5, atol=1e-5)


def test_weights_on_many_devices_stay_there() -> None:
    mesh = jax.make_mesh((8,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    net = Net(lambda x: norm()(nn.Dense(16)(x)))
    variables = variables_of(net, X)
    sharding = NamedSharding(mesh, PartitionSpec(None, "model"))
    expected = net.apply(variables, X)
    variables["params"]["Dense_0"]["kernel"] = jax.device_put(variables["params"]["Dense_0"]["kernel"], sharding)
    folded, new, _ = jaxnorm.linen.fold(net, variables, X)
    assert new["params"]["Dense_0"]["kernel"].sharding.is_equivalent_to(sharding, 2)
    assert_allclose(folded.apply(new, jax.device_put(X, NamedSharding(mesh, PartitionSpec()))), expected, rtol=1e-5, atol=1e-5)


def test_shapes_are_inputs_enough(linen_net: Any) -> None:
    net, variables = linen_net
    shape = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    folded, new, _ = jaxnorm.linen.fold(net, variables, shape, train=False)
    assert_allclose(folded.apply(new, X, train=False), net.apply(variables, X, train=False), rtol=1e-5, atol=1e-5)


def test_variables_of_numpy() -> None:
    net = Net(lambda x: nn.Dense(4)(norm()(x)))
    variables = jax.tree.map(np.asarray, variables_of(net, X))
    folded, new, report = jaxnorm.linen.fold(net, variables, np.asarray(X))
    assert report.folded
    assert_allclose(folded.apply(new, X), net.apply(variables, X), rtol=1e-5, atol=1e-5)


def test_frozen_and_ghost_batch_norm() -> None:
    check(lambda x: jaxnorm.linen.FrozenBatchNorm()(nn.Dense(4)(x)))
    check(lambda x: jaxnorm.linen.GhostBatchNorm(use_running_average=True, ghost_size=2)(nn.Dense(4)(x)))


# bad input


def test_a_norm_in_training_is_an_error(linen_net: Any, nnx_net: Any) -> None:
    net, variables = linen_net
    with pytest.raises(
        ValueError, match="the batch norm BatchNorm_0 must use its running statistics, got use_running_average=False"
    ):
        jaxnorm.linen.fold(net, variables, X, train=True)
    training = nnx.clone(nnx_net)
    training.train()
    with pytest.raises(ValueError, match="the batch norm first must use its running statistics, got use_running_average=False"):
        jaxnorm.nnx.fold(training, X)


def test_a_folded_norm_knows_no_training(linen_net: Any) -> None:
    net = Net(lambda x: nn.BatchNorm()(nn.Dense(3)(x), use_running_average=x.shape[0] > 1))
    folded, variables, _ = jaxnorm.linen.fold(net, variables_of(net, X), X)
    with pytest.raises(ValueError, match="the batch norm BatchNorm_0 must use its running statistics"):
        folded.apply(variables, X[:1])


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("mean", [0.0, np.nan, 0.0], r"BatchNorm_0 cannot be folded: state.mean must be finite, got nan at \[1\]"),
        ("var", [1.0, 1.0, -1.0], r"BatchNorm_0 cannot be folded: state.var must be finite and at least 0, got -1.0 at \[2\]"),
    ],
)
def test_statistics_that_cannot_be_folded(name: str, value: list[float], message: str) -> None:
    net = Net(lambda x: norm()(nn.Dense(3)(x)))
    variables = variables_of(net, X)
    variables["batch_stats"]["BatchNorm_0"][name] = jnp.asarray(value)
    with pytest.raises(ValueError, match=message):
        jaxnorm.linen.fold(net, variables, X)


def test_what_is_no_model_or_has_no_norm() -> None:
    with pytest.raises(TypeError, match="model must be Module"):
        jaxnorm.linen.fold(lambda x: x, {}, X)  # type: ignore
    with pytest.raises(TypeError, match="model must be Module"):
        jaxnorm.nnx.fold(lambda x: x, X)  # type: ignore
    with pytest.raises(ValueError, match="the model calls no batch norm that could be folded"):
        jaxnorm.nnx.fold(nnx.Linear(3, 3, rngs=nnx.Rngs(0)), X)
    net = Net(lambda x: norm()(nn.Dense(3)(x)))
    variables = variables_of(net, X)
    variables["batch_stats"]["BatchNorm_0"] = jax.tree.map(lambda a: a[:2], variables["batch_stats"]["BatchNorm_0"])
    message = r"the running mean of the batch norm BatchNorm_0 must have shape \[3\] \(the channels of x\), got \[2\]"
    with pytest.raises(ValueError, match=message):
        jaxnorm.linen.fold(net, variables, X)


def test_the_report_is_data_and_a_table() -> None:
    report = FoldReport((NormFold("a/norm", "a/conv", "after", adds=True), NormFold("head", reason="no layer is before it")))
    assert [one.norm for one in report.folded] == ["a/norm"]
    assert [one.norm for one in report.left] == ["head"]
    assert str(report).splitlines() == [
        "1 of 2 batch norms folded",
        "  batch norm   folded into         note",
        " ────────────────────────────────────────────────────────",
        "  a/norm       a/conv, before it   an addition is left",
        "  head         -                   no layer is before it",
    ]
