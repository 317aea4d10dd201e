"""Variants of batch norm of linen and of nnx alike: the function's digits, and variables."""

from typing import Any

import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax_layers import batch

import jaxnorm
import jaxnorm.linen
import jaxnorm.nnx

C = (6,)
AFFINE = {"scale": C, "bias": C}
ROWS: dict[str, tuple[str, dict[str, Any], dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]] = {
    # function, fields, shapes of the parameters and of the statistics
    "BatchInstanceNorm": ("batch_instance_norm", {}, AFFINE | {"gate": C}, {"mean": C, "var": C}),
    "SwitchableNorm": ("switchable_norm", {}, AFFINE | {"mean_logits": (3,), "var_logits": (3,)}, {"mean": C, "var": C}),
    "TrackedInstanceNorm": ("tracked_instance_norm", {"unbiased": True}, AFFINE, {"mean": C, "var": C}),
    "MeanOnlyBatchNorm": ("mean_only_batch_norm", {}, {"bias": C}, {"mean": C}),
    "LpBatchNorm": ("lp_batch_norm", {"p": 1.5, "gaussian": True}, AFFINE, {"mean": C, "deviation": C}),
    "IterativeNorm": ("iterative_norm", {"group_size": 3, "iterations": 4}, AFFINE, {"mean": C, "cov": (2, 3, 3)}),
    "EvoNormB0": ("evonorm_b0", {}, AFFINE | {"v": C}, {"var": C}),
    "EvoNormB1": ("evonorm_b1", {}, AFFINE, {"var": C}),
    "EvoNormB2": ("evonorm_b2", {}, AFFINE, {"var": C}),
    "EvoNormS0": ("evonorm_s0", {"num_groups": 2}, AFFINE | {"v": C}, {}),
    "EvoNormS1": ("evonorm_s1", {"num_groups": 3}, AFFINE, {}),
    "EvoNormS2": ("evonorm_s2", {"num_groups": None, "group_size": 2}, AFFINE, {}),
}
each = pytest.mark.parametrize("name", ROWS)
X = batch((5, 3, 4, 6))


def values(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, jax.Array]:
    draw = np.random.default_rng(seed)
    made = {name: jnp.asarray(draw.uniform(0.5, 2, shape), jnp.float32) for name, shape in shapes.items()}
    if "cov" in made:
        made["cov"] = made["cov"] @ made["cov"].mT + jnp.eye(3)[None]
    return made


def containers(name: str, params: dict[str, jax.Array], stats: dict[str, jax.Array]) -> tuple[Any, ...]:
    """The parameters and the state as the function takes them."""
    made = getattr(jaxnorm, f"init_{ROWS[name][0]}")(6, **({"group_size": 3} if name == "IterativeNorm" else {}))
    kinds = [type(part) for part in (made if type(made) is tuple else (made,))]
    state = tuple(kind(*stats.values()) for kind in kinds[1:])
    return (kinds[0](**{"scale": None, "bias": None, **params}), *state)


@each
@pytest.mark.parametrize("frozen", [False, True], ids=["train", "infer"])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "mask"])
def test_modules_are_the_function(name: str, frozen: bool, masked: bool) -> None:
    function, fields, of_params, of_stats = ROWS[name]
    params, stats = values(of_params, 1), values(of_stats, 2)
    mask = np.arange(60).reshape(5, 3, 4, 1) % 5 != 1 if masked else None
    given = {} if mask is None else {"where": jnp.asarray(mask)}
    mode = {"train": not frozen, "momentum": 0.8} if of_stats else {}
    epsilon = {} if name == "MeanOnlyBatchNorm" else {"epsilon": 1e-3}
    result = getattr(jaxnorm, function)(*containers(name, params, stats), X, **given, **mode, **fields, **epsilon)
    wanted, new = result if of_stats else (result, ())
    fields = {**fields, **epsilon, **({"momentum": 0.8} if of_stats else {})}
    call = {"use_running_average": frozen} if of_stats else {}

    linen = getattr(jaxnorm.linen, name)(**fields)
    y, updates = linen.apply({"params": params, "batch_stats": stats}, X, mask=mask, **call, mutable=["batch_stats"])
    np.testing.assert_array_equal(y, wanted)
    nnx = getattr(jaxnorm.nnx, name)(6, **fields, rngs=flax.nnx.Rngs(0))
    for part, value in {**params, **stats}.items():
        getattr(nnx, part).set_value(value)
    np.testing.assert_array_equal(nnx(X, mask=mask, **call), wanted)
    for part, value in zip(of_stats, new, strict=True):
        np.testing.assert_array_equal(updates["batch_stats"][part], value)
        np.testing.assert_array_equal(getattr(nnx, part)[...], value)


@each
def test_variables_are_those_of_a_new_function(name: str) -> None:
    function, fields, of_params, of_stats = ROWS[name]
    fields = {key: value for key, value in fields.items() if key not in ("p", "gaussian", "unbiased")}
    call = {"use_running_average": False} if of_stats else {}
    variables = getattr(jaxnorm.linen, name)(**fields).init(jax.random.key(0), X, **call)
    module = getattr(jaxnorm.nnx, name)(6, **fields, rngs=flax.nnx.Rngs(0))
    made = getattr(jaxnorm, f"init_{function}")(6, **({"group_size": 3} if name == "IterativeNorm" else {}))
    parts = made if type(made) is tuple else (made,)
    new = [{key: value for key, value in part._asdict().items() if value is not None} for part in parts]
    if name == "LpBatchNorm":
        new[1] = {"mean": new[1]["mean"], "deviation": new[1]["scale"]}
    for collection, shapes, expected in zip(("params", "batch_stats"), (of_params, of_stats), (*new, {}), strict=False):
        found = variables.get(collection, {})
        assert jax.tree.map(jnp.shape, dict(found)) == shapes
        jax.tree.map(np.testing.assert_array_equal, dict(found), expected)
        for part, value in expected.items():
            np.testing.assert_array_equal(getattr(module, part)[...], value)


@each
def test_a_model_in_half_precision_is_as_wide_as_it_is_told(name: str) -> None:
    _, fields, _, of_stats = ROWS[name]
    call = {"use_running_average": False} if of_stats else {}
    module = getattr(jaxnorm.nnx, name)(6, **fields, dtype=jnp.bfloat16, rngs=flax.nnx.Rngs(0))
    assert module(X, **call).dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(flax.nnx.state(module)))


def test_virtual_batch_norm_takes_a_reference() -> None:
    reference = jaxnorm.reference_moments(batch((4, 3, 4, 6), seed=8))
    params = values(AFFINE, 1)
    mask = np.arange(60).reshape(5, 3, 4, 1) % 5 != 1
    wanted = jaxnorm.virtual_batch_norm(jaxnorm.AffineParams(**params), X, reference, where=jnp.asarray(mask))
    linen, nnx = jaxnorm.linen.VirtualBatchNorm(), jaxnorm.nnx.VirtualBatchNorm(6, rngs=flax.nnx.Rngs(0))
    assert jax.tree.map(jnp.shape, linen.init(jax.random.key(0), X, reference)["params"]) == AFFINE
    np.testing.assert_array_equal(linen.apply({"params": params}, X, reference, mask=mask), wanted)
    for part, value in params.items():
        getattr(nnx, part).set_value(value)
    np.testing.assert_array_equal(nnx(X, reference, mask=mask), wanted)


def test_frozen_batch_norm_loads_what_batch_norm_trained_and_gets_no_gradient() -> None:
    params, stats = values(AFFINE, 1), values({"mean": C, "var": C}, 2)
    tree = {"params": params, "batch_stats": stats}
    wanted = jaxnorm.linen.BatchNorm(use_running_average=True).apply(tree, X)
    frozen = jaxnorm.linen.FrozenBatchNorm()
    np.testing.assert_array_equal(frozen.apply(tree, X), wanted)
    gradient = jax.grad(lambda tree: jnp.sum(jnp.sin(frozen.apply(tree, X))))(tree)
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, jnp.zeros(6)), gradient)
    new = frozen.init(jax.random.key(0), X)
    np.testing.assert_allclose(frozen.apply(new, X), X, rtol=1e-6)
    nnx = jaxnorm.nnx.FrozenBatchNorm(6)
    np.testing.assert_array_equal(nnx(X), frozen.apply(new, X))
    for part, value in {**params, **stats}.items():
        getattr(nnx, part).set_value(value)
    np.testing.assert_array_equal(nnx(X), wanted)
    bare = jaxnorm.nnx.FrozenBatchNorm(6, use_scale=False, use_bias=False)
    assert bare.scale is None
    assert list(jaxnorm.linen.FrozenBatchNorm(use_scale=False, use_bias=False).init(jax.random.key(0), X)) == ["batch_stats"]


@pytest.mark.parametrize("frozen", [False, True], ids=["train", "infer"])
def test_noisy_batch_norm_draws_from_a_stream_in_training_alone(frozen: bool) -> None:
    fields = {"mean_bound": 0.3, "std_bound": 1.5, "spread": 0.2, "bits": 32, "momentum": 0.8}
    params, stats = values(AFFINE, 1), values({"mean": C, "var": C}, 2)
    new_key = lambda: jax.random.key(5)  # noqa: E731
    wanted, new = jaxnorm.noisy_batch_norm(new_key(), *containers_of_batch_norm(params, stats), X, train=not frozen, **fields)
    linen = jaxnorm.linen.NoisyBatchNorm(**fields)
    tree = {"params": params, "batch_stats": stats}
    y, updates = linen.apply(tree, X, use_running_average=frozen, rng=new_key(), mutable=["batch_stats"])
    np.testing.assert_array_equal(y, wanted)
    nnx = jaxnorm.nnx.NoisyBatchNorm(6, **fields, rngs=flax.nnx.Rngs(0, dropout=1))
    for part, value in {**params, **stats}.items():
        getattr(nnx, part).set_value(value)
    np.testing.assert_array_equal(nnx(X, use_running_average=frozen, rng=new_key()), wanted)
    for part, value in new._asdict().items():
        np.testing.assert_array_equal(updates["batch_stats"][part], value)
        np.testing.assert_array_equal(getattr(nnx, part)[...], value)
    draws = [
        linen.apply(tree, X, use_running_average=frozen, rngs={} if frozen else {"dropout": new_key()}, mutable=["batch_stats"])[
            0
        ]
        for _ in range(2)
    ]
    np.testing.assert_array_equal(*draws)
    first, second = (nnx(X, use_running_average=frozen) for _ in range(2))
    assert np.array_equal(first, second) == frozen


def containers_of_batch_norm(params: dict[str, jax.Array], stats: dict[str, jax.Array]) -> tuple[Any, Any]:
    return jaxnorm.AffineParams(**params), jaxnorm.RunningStats(**stats)
