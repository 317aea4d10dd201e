"""Outputs, statistics and gradients beside those of PyTorch, Keras, haiku and equinox, with parameters that are not new.

In float64 all but Keras agree to 1e-10, and in float32 all to 1e-5 of the largest number, where they compute the same thing.
`python tests/test_parity.py` prints the largest differences.
"""

import functools
import importlib
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm

pytestmark = pytest.mark.slow
os.environ["KERAS_BACKEND"] = "jax"  # keras reads it when it is imported
EPSILON, MOMENTUM = 1e-3, 0.8


class Outcome(NamedTuple):
    """What a layer gives for an x and an incoming gradient; channels last."""

    y: Any
    dx: Any
    of_params: dict[str, Any]
    state: dict[str, Any]


class Problem(NamedTuple):
    """Random numbers for a layer of so many channels, in float64."""

    x: np.ndarray
    g: np.ndarray
    scale: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    var: np.ndarray


def problem(shape: tuple[int, ...], seed: int = 0) -> Problem:
    random = np.random.default_rng(seed)
    channels = shape[-1]
    return Problem(
        random.normal(2, 3, shape),
        random.normal(size=shape),
        random.uniform(0.5, 2, channels),
        random.normal(size=channels),
        random.normal(size=channels),
        random.uniform(0.5, 2, channels),
    )


def ours(call: Callable[..., Any], problem: Problem, dtype: Any) -> Outcome:
    """Runs `call(params, state, x) -> (y, state)` of ours."""
    x, g, scale, bias, mean, var = (jnp.asarray(part, dtype) for part in problem)
    params, state = jaxnorm.AffineParams(scale, bias), jaxnorm.RunningStats(mean, var)
    y, pullback, new = jax.vjp(lambda params, x: call(params, state, x), params, x, has_aux=True)
    of_params, dx = pullback(g)
    return Outcome(y, dx, of_params._asdict(), {} if new is None else new._asdict())


def without_state(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    return lambda params, state, x: (function(params, x, **options), None)


# PyTorch


def to_torch(a: np.ndarray, dtype: Any) -> Any:
    torch = importlib.import_module("torch")
    moved = np.moveaxis(a, -1, 1) if a.ndim > 1 else a
    return torch.tensor(np.ascontiguousarray(moved), dtype=getattr(torch, np.dtype(dtype).name))


def from_torch(a: Any) -> np.ndarray:
    a = a.detach().numpy()
    return np.moveaxis(a, 1, -1) if a.ndim > 1 else a


def torch_layer(
    make: Callable[[Any, int], Any], problem: Problem, dtype: Any, *, train: bool = True, last: bool = False
) -> Outcome:
    """Runs a module of PyTorch; `last` ones have their features last."""
    torch = importlib.import_module("torch")
    module = make(torch.nn, problem.x.shape[-1]).to(getattr(torch, np.dtype(dtype).name)).train(train)
    names = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    for name, own in names.items():
        if getattr(module, name, None) is not None:
            getattr(module, name).data = to_torch(getattr(problem, own), dtype)
    place = (lambda a: torch.tensor(a, dtype=module_dtype)) if last else (lambda a: to_torch(a, dtype))
    module_dtype = getattr(torch, np.dtype(dtype).name)
    back = (lambda a: a.detach().numpy()) if last else from_torch
    x = place(problem.x).requires_grad_()
    y = module(x)
    y.backward(place(problem.g))
    of_params = {
        own: back(getattr(module, name).grad)
        for name, own in names.items()
        if own in ("scale", "bias") and getattr(module, name, None) is not None
    }
    state = {
        own: back(getattr(module, name))
        for name, own in names.items()
        if own in ("mean", "var") and getattr(module, name, None) is not None
    }
    return Outcome(back(y), back(x.grad), of_params, state)


def _rms_norm(params: Any, state: Any, x: jax.Array) -> Any:
    return jaxnorm.rms_norm(params._replace(bias=None), x, epsilon=EPSILON), None


VECTORS, IMAGES = (16, 6), (4, 5, 3, 6)
BATCH: dict[str, Any] = {"momentum": MOMENTUM, "epsilon": EPSILON, "unbiased": True}


def _batch_norm(train: bool) -> Callable[..., Any]:
    return lambda params, state, x: jaxnorm.batch_norm(params, state, x, train=train, **BATCH)


def _tracked(train: bool) -> Callable[..., Any]:
    return lambda params, state, x: jaxnorm.tracked_instance_norm(params, state, x, train=train, **BATCH)


def _local(params: Any, state: Any, x: jax.Array) -> Any:
    return jaxnorm.local_response_norm(x, size=3, k=1.2, alpha=0.5 / 3, beta=0.6), None


TORCH: dict[str, tuple[Callable[..., Any], tuple[int, ...], Callable[..., Any], dict[str, Any]]] = {
    "BatchNorm1d": (_batch_norm(True), VECTORS, lambda nn, c: nn.BatchNorm1d(c, EPSILON, 1 - MOMENTUM), {}),
    "BatchNorm2d": (_batch_norm(True), IMAGES, lambda nn, c: nn.BatchNorm2d(c, EPSILON, 1 - MOMENTUM), {}),
    "BatchNorm2d, inference": (_batch_norm(False), IMAGES, lambda nn, c: nn.BatchNorm2d(c, EPSILON), {"train": False}),
    "LayerNorm": (
        without_state(jaxnorm.layer_norm, epsilon=EPSILON),
        (3, 5, 6),
        lambda nn, c: nn.LayerNorm(c, EPSILON),
        {"last": True},
    ),
    "RMSNorm": (
        _rms_norm,
        (3, 5, 6),
        lambda nn, c: nn.RMSNorm(c, EPSILON),
        {"last": True},
    ),
    "GroupNorm": (
        without_state(jaxnorm.group_norm, num_groups=3, epsilon=EPSILON),
        IMAGES,
        lambda nn, c: nn.GroupNorm(3, c, EPSILON),
        {},
    ),
    "InstanceNorm2d": (
        without_state(jaxnorm.instance_norm, epsilon=EPSILON),
        IMAGES,
        lambda nn, c: nn.InstanceNorm2d(c, EPSILON, affine=True),
        {},
    ),
    "InstanceNorm2d, tracked": (
        _tracked(True),
        IMAGES,
        lambda nn, c: nn.InstanceNorm2d(c, EPSILON, 1 - MOMENTUM, affine=True, track_running_stats=True),
        {},
    ),
    "InstanceNorm2d, tracked, inference": (
        _tracked(False),
        IMAGES,
        lambda nn, c: nn.InstanceNorm2d(c, EPSILON, affine=True, track_running_stats=True),
        {"train": False},
    ),
    "LocalResponseNorm": (_local, IMAGES, lambda nn, c: nn.LocalResponseNorm(3, alpha=0.5, beta=0.6, k=1.2), {}),
}


def of_torch(name: str, dtype: Any) -> tuple[Outcome, Outcome]:
    call, shape, make, options = TORCH[name]
    given = problem(shape)
    return ours(call, given, dtype), torch_layer(make, given, dtype, **options)


# haiku, equinox and Keras, whose layers are programs of jax


def in_jax(apply: Callable[..., Any], problem: Problem, dtype: Any) -> Outcome:
    """Runs `apply(params, state, x) -> (y, state)` of dictionaries with our names."""
    x, g, *parts = (jnp.asarray(part, dtype) for part in problem)
    params, state = dict(zip(("scale", "bias"), parts[:2], strict=True)), dict(zip(("mean", "var"), parts[2:], strict=True))
    y, pullback, new = jax.vjp(lambda params, x: apply(params, state, x), params, x, has_aux=True)
    of_params, dx = pullback(g)
    return Outcome(y, dx, of_params, new)


def haiku_norm(name: str, **options: Any) -> Callable[..., Any]:
    hk = importlib.import_module("haiku")

    def apply(params: Any, state: Any, x: jax.Array) -> Any:
        def call(x: jax.Array) -> jax.Array:
            if name == "BatchNorm":
                return hk.BatchNorm(True, True, MOMENTUM, EPSILON)(x, is_training=True)
            return getattr(hk, name)(**options, eps=EPSILON)(x)

        layer = hk.transform_with_state(call)
        shapes, _ = jax.eval_shape(layer.init, None, x)
        given = {
            module: {key: params["bias" if key == "offset" else "scale"].reshape(part.shape) for key, part in own.items()}
            for module, own in shapes.items()
        }
        _, start = layer.init(None, x)
        start = {module: {"average": own["average"], **own} for module, own in start.items()}
        y, _ = layer.apply(given, start, None, x)
        return y, {}

    return apply


def equinox_norm(name: str, *given: Any) -> Callable[..., Any]:
    eqx = importlib.import_module("equinox")

    def apply(params: Any, state: Any, x: jax.Array) -> Any:
        module = getattr(eqx.nn, name)(*given, x.shape[-1], EPSILON)
        module = eqx.tree_at(lambda m: m.weight, module, params["scale"])
        if getattr(module, "bias", None) is not None:
            module = eqx.tree_at(lambda m: m.bias, module, params["bias"])
        if name == "GroupNorm":
            return jnp.moveaxis(jax.vmap(module)(jnp.moveaxis(x, -1, 1)), 1, -1), {}
        return jax.vmap(jax.vmap(module))(x), {}

    return apply


def keras_layer(make: Callable[[Any, str], Any], *, mask: np.ndarray | None = None) -> Callable[..., Any]:
    keras = importlib.import_module("keras")

    def apply(params: Any, state: Any, x: jax.Array) -> Any:
        layer = make(keras.layers, np.dtype(x.dtype).name)
        layer.build(x.shape)
        names = {"gamma": "scale", "beta": "bias", "scale": "scale", "moving_mean": "mean", "moving_variance": "var"}
        trained = [params[names[v.name]] for v in layer.trainable_variables]
        kept = [state[names[v.name]] if v.name in names else v.value for v in layer.non_trainable_variables]
        mode = {"training": True} if isinstance(layer, keras.layers.BatchNormalization) else {}
        given = {} if mask is None else {"mask": jnp.asarray(mask)}
        y, new = layer.stateless_call(trained, kept, x, **mode, **given)
        values = {names[v.name]: value for v, value in zip(layer.non_trainable_variables, new, strict=True) if v.name in names}
        return y, values

    return apply


MASK = np.random.default_rng(3).uniform(size=(4, 5)) < 0.7
_PLAIN: dict[str, Any] = {"momentum": MOMENTUM, "epsilon": EPSILON}
TOKENS = (4, 5, 6)
JAX: dict[str, tuple[str, Callable[..., Any], tuple[int, ...], Callable[[], Callable[..., Any]]]] = {
    "haiku LayerNorm": (
        "haiku",
        without_state(jaxnorm.layer_norm, epsilon=EPSILON),
        TOKENS,
        functools.partial(haiku_norm, "LayerNorm", axis=-1, create_scale=True, create_offset=True),
    ),
    "haiku RMSNorm": (
        "haiku",
        _rms_norm,
        TOKENS,
        functools.partial(haiku_norm, "RMSNorm", axis=-1),
    ),
    "haiku GroupNorm": (
        "haiku",
        without_state(jaxnorm.group_norm, num_groups=3, epsilon=EPSILON),
        IMAGES,
        functools.partial(haiku_norm, "GroupNorm", groups=3),
    ),
    "haiku InstanceNorm": (
        "haiku",
        without_state(jaxnorm.instance_norm, epsilon=EPSILON),
        IMAGES,
        functools.partial(haiku_norm, "InstanceNorm", create_scale=True, create_offset=True),
    ),
    "haiku BatchNorm": (
        "haiku",
        lambda params, state, x: (jaxnorm.batch_norm(params, state, x, train=True, epsilon=EPSILON)[0], None),
        IMAGES,
        functools.partial(haiku_norm, "BatchNorm"),
    ),
    "equinox LayerNorm": (
        "equinox",
        without_state(jaxnorm.layer_norm, epsilon=EPSILON),
        TOKENS,
        functools.partial(equinox_norm, "LayerNorm"),
    ),
    "equinox RMSNorm": (
        "equinox",
        without_state(jaxnorm.rms_norm, epsilon=EPSILON),
        TOKENS,
        functools.partial(equinox_norm, "RMSNorm"),
    ),
    "equinox GroupNorm": (
        "equinox",
        without_state(jaxnorm.group_norm, num_groups=3, epsilon=EPSILON),
        IMAGES,
        functools.partial(equinox_norm, "GroupNorm", 3),
    ),
    "keras BatchNormalization": (
        "keras",
        lambda params, state, x: jaxnorm.batch_norm(params, state, x, train=True, **_PLAIN),
        IMAGES,
        lambda: keras_layer(lambda layers, dtype: layers.BatchNormalization(**_PLAIN, dtype=dtype)),
    ),
    "keras BatchNormalization, mask": (
        "keras",
        lambda params, state, x: jaxnorm.batch_norm(params, state, x, train=True, **_PLAIN, where=jnp.asarray(MASK)[..., None]),
        TOKENS,
        lambda: keras_layer(lambda layers, dtype: layers.BatchNormalization(**_PLAIN, dtype=dtype), mask=MASK),
    ),
    "keras LayerNormalization": (
        "keras",
        without_state(jaxnorm.layer_norm, epsilon=EPSILON),
        TOKENS,
        lambda: keras_layer(lambda layers, dtype: layers.LayerNormalization(epsilon=EPSILON, dtype=dtype)),
    ),
    "keras GroupNormalization": (
        "keras",
        without_state(jaxnorm.group_norm, num_groups=3, epsilon=EPSILON),
        IMAGES,
        lambda: keras_layer(lambda layers, dtype: layers.GroupNormalization(3, epsilon=EPSILON, dtype=dtype)),
    ),
    "keras UnitNormalization": (
        "keras",
        lambda params, state, x: (jaxnorm.unit_norm(x, k=0.0), None),
        TOKENS,
        lambda: keras_layer(lambda layers, dtype: layers.UnitNormalization(dtype=dtype)),
    ),
    "keras RMSNormalization": (
        "keras",
        _rms_norm,
        TOKENS,
        lambda: keras_layer(lambda layers, dtype: layers.RMSNormalization(epsilon=EPSILON, dtype=dtype)),
    ),
}


def of_jax(name: str, dtype: Any) -> tuple[Outcome, Outcome]:
    _, call, shape, make = JAX[name]
    given = problem(shape)
    return ours(call, given, dtype), in_jax(make(), given, dtype)


# What they have in common


def differences(got: Outcome, wanted: Outcome) -> dict[str, float]:
    """The largest difference of each part of which both have something, over the largest number of theirs."""

    def of(a: Any, b: Any) -> float:
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        return float(np.abs(a - b).max() / np.abs(b).max())

    found = {"y": of(got.y, wanted.y), "dx": of(got.dx, wanted.dx)}
    for name in ("of_params", "state"):
        mine, theirs = getattr(got, name), getattr(wanted, name)
        shared = [key for key in theirs if mine.get(key) is not None and np.any(np.asarray(theirs[key]) != 0)]
        found |= {f"{name}.{key}": of(mine[key], theirs[key]) for key in shared}
    return found


def compared(name: str, dtype: Any) -> dict[str, float]:
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return differences(*(of_torch if name in TORCH else of_jax)(name, dtype))


@pytest.mark.parametrize("name", [*TORCH, *JAX])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-10), (np.float32, 1e-5)], ids=["float64", "float32"])
def test_differences_are_those_of_rounding(name: str, dtype: Any, tolerance: float) -> None:
    pytest.importorskip("torch" if name in TORCH else JAX[name][0])
    if name in JAX and JAX[name][0] == "keras":
        tolerance = 1e-5  # it computes in float32 whatever it is given
    found = compared(name, dtype)
    assert {"y", "dx"} <= set(found)
    assert max(found.values()) < tolerance, found


def weights_of_torch(name: str, dtype: Any) -> dict[str, float]:
    """The kernels of a dense layer, and the gradient of the parameter; spectral norm when it has converged."""
    torch = importlib.import_module("torch")
    random = np.random.default_rng(0)
    kernel, gain, g = random.normal(size=(5, 7)), random.uniform(0.5, 2, 7), random.normal(size=(5, 7))
    layer = torch.nn.Linear(5, 7, bias=False).to(getattr(torch, np.dtype(dtype).name))
    layer.weight.data = torch.tensor(kernel.T.astype(dtype))
    made = getattr(torch.nn.utils.parametrizations, name)(layer)
    parameters = made.parametrizations.weight
    if name == "weight_norm":
        parameters.original0.data = torch.tensor(gain[:, None].astype(dtype))
    for _ in range(1 if name == "weight_norm" else 300):
        theirs = made.weight
    theirs.backward(torch.tensor(g.T.astype(dtype)))
    original = parameters.original1 if name == "weight_norm" else parameters.original
    state = jaxnorm.SpectralStats(jnp.ones(7, dtype), jnp.ones((), dtype))

    def call(kernel: jax.Array) -> jax.Array:
        if name == "weight_norm":
            return jaxnorm.weight_norm(jaxnorm.WeightNormParams(kernel, jnp.asarray(gain, dtype)), epsilon=0.0)
        return jaxnorm.spectral_norm(state, kernel, train=True, steps=300)[0]

    y, pullback = jax.vjp(call, jnp.asarray(kernel, dtype))
    mine = Outcome(y, *pullback(jnp.asarray(g, dtype)), {}, {})
    return differences(mine, Outcome(theirs.detach().numpy().T, original.grad.numpy().T, {}, {}))


@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-10), (np.float32, 1e-5)], ids=["float64", "float32"])
def test_kernels_are_those_of_pytorch(name: str, dtype: Any, tolerance: float) -> None:
    pytest.importorskip("torch")
    with jax.enable_x64(True):
        found = weights_of_torch(name, dtype)
    assert max(found.values()) < tolerance, found


if __name__ == "__main__":
    for name in (*TORCH, *JAX):
        print(name, *(f"{part} {value:.1e}" for part, value in compared(name, np.float64).items()), sep=", ")
