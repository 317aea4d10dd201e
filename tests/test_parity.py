"""Outputs, statistics and gradients beside those of PyTorch, Keras, haiku and equinox, with parameters that are not new.

In float64 all but the norms of Keras agree to 1e-10, and in float32 all to 1e-5 of the largest number, where they compute the
same thing.
`python tests/test_parity.py` prints the largest differences.
"""

import functools
import importlib
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxnorm
import jaxnorm.linen
import jaxnorm.nnx

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
        random.normal(1, 4, channels),
        random.uniform(0.5, 20, channels),  # so that the deviation of the batch is above some and below others
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


def keras_layer(make: Callable[[Any, str], Any], *, train: bool = True, mask: np.ndarray | None = None) -> Callable[..., Any]:
    keras = importlib.import_module("keras")

    def apply(params: Any, state: Any, x: jax.Array) -> Any:
        layer = make(keras.layers, np.dtype(x.dtype).name)
        layer.build(x.shape)
        names = {"gamma": "scale", "beta": "bias", "scale": "scale"}
        names |= {"moving_mean": "mean", "moving_variance": "var", "moving_stddev": "std"}
        trained = [params[names[v.name]] for v in layer.trainable_variables]
        starts = {**state, "std": jnp.sqrt(state["var"] + EPSILON)}
        starts = {name: starts[own] for name, own in names.items() if own in starts}
        starts |= {"renorm_mean": starts["moving_mean"], "renorm_stddev": starts["moving_stddev"]}
        kept = [starts.get(v.name, v.value) for v in layer.non_trainable_variables]
        mode = {"training": train} if isinstance(layer, keras.layers.BatchNormalization) else {}
        given = {} if mask is None else {"mask": jnp.asarray(mask)}
        y, new = layer.stateless_call(trained, kept, x, **mode, **given)
        values = {names[v.name]: value for v, value in zip(layer.non_trainable_variables, new, strict=True) if v.name in names}
        return y, values

    return apply


RENORM: dict[str, Any] = {"r_max": 1.25, "d_max": 1.0}
UNLIMITED: dict[str, Any] = {"r_max": np.inf, "d_max": np.inf}


def _renorm(train: bool = True, where: Any = None, **limits: Any) -> Callable[..., Any]:
    def call(params: Any, state: Any, x: jax.Array) -> Any:
        state = jaxnorm.RenormStats(state.mean, jnp.sqrt(state.var + EPSILON))
        return jaxnorm.batch_renorm(params, state, x, train=train, where=where, **_PLAIN, **limits)

    return call


def keras_renorm(limits: dict[str, Any], **given: Any) -> Callable[..., Any]:
    """Keras's batch renormalization, which has statistics for the corrections that move with a momentum of their own."""
    r_max, d_max = limits["r_max"], limits["d_max"]
    clipping = {"rmin": 1 / r_max, "rmax": r_max, "dmax": d_max} if np.isfinite(r_max) else None
    options = {**_PLAIN, "renorm": True, "renorm_clipping": clipping, "renorm_momentum": MOMENTUM}
    return keras_layer(lambda layers, dtype: layers.BatchNormalization(**options, dtype=dtype), **given)


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
    "keras BatchNormalization, renorm": ("keras", _renorm(**RENORM), TOKENS, lambda: keras_renorm(RENORM)),
    "keras BatchNormalization, renorm, no limits": ("keras", _renorm(**UNLIMITED), IMAGES, lambda: keras_renorm(UNLIMITED)),
    "keras BatchNormalization, renorm, mask": (
        "keras",
        _renorm(where=MASK[..., None], **RENORM),
        TOKENS,
        lambda: keras_renorm(RENORM, mask=MASK),
    ),
    "keras BatchNormalization, renorm, inference": (
        "keras",
        _renorm(train=False, **RENORM),
        IMAGES,
        lambda: keras_renorm(RENORM, train=False),
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
        tolerance = 1e-5  # these compute in float32 whatever they are given
    found = compared(name, dtype)
    assert {"y", "dx"} <= set(found)
    assert max(found.values()) < tolerance, found


def test_limits_of_renorm_are_met_by_some_channels() -> None:
    given = problem(TOKENS)
    std = np.sqrt(given.var + EPSILON)
    r, d = np.sqrt(given.x.var((0, 1)) + EPSILON) / std, (given.x.mean((0, 1)) - given.mean) / std
    r_max, d_max = RENORM["r_max"], RENORM["d_max"]
    for met in (r < 1 / r_max, r > r_max, d < -d_max, d > d_max):
        assert met.any()
    for kept in ((1 / r_max < r) & (r < r_max), np.abs(d) < d_max):
        assert kept.any()


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


# Spectral norm of Keras, a layer that calls another

SPECTRAL: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {"Dense": ((4, 5), (5, 7)), "Conv2D": ((4, 5, 5, 3), (2, 2, 3, 7))}


def spectral_of_ours(api: str, steps: int, like: jax.Array) -> Callable[..., Any]:
    """Returns `call(u, kernel, x) -> (y, u)`, a call in training of our module around a layer with such a kernel."""
    dtype, sizes = like.dtype, like.shape[-2:]
    layer: dict[str, Any] = {"use_bias": False, "param_dtype": dtype}
    layer |= {"kernel_size": like.shape[:-2], "padding": "VALID"} if like.ndim > 2 else {}
    options: dict[str, Any] = {"n_steps": steps, "epsilon": 0.0, "param_dtype": dtype}

    def in_linen(u: jax.Array, kernel: jax.Array, x: jax.Array) -> Any:
        module = (flax.linen.Conv if like.ndim > 2 else flax.linen.Dense)(sizes[-1], **layer)
        stats = {"layer_instance/kernel/u": u, "layer_instance/kernel/sigma": jnp.ones((), dtype)}
        variables = {"params": {"layer_instance": {"kernel": kernel}}, "batch_stats": stats}
        norm = jaxnorm.linen.SpectralNorm(module, **options)
        y, new = norm.apply(variables, x, update_stats=True, mutable=["batch_stats"])
        return y, new["batch_stats"]["layer_instance/kernel/u"]

    def in_nnx(u: jax.Array, kernel: jax.Array, x: jax.Array) -> Any:
        module = (flax.nnx.Conv if like.ndim > 2 else flax.nnx.Linear)(*sizes, rngs=flax.nnx.Rngs(0), **layer)
        norm = jaxnorm.nnx.SpectralNorm(module, rngs=flax.nnx.Rngs(0), **options)
        module.kernel.set_value(kernel)
        norm.batch_stats[("kernel", "u")].set_value(u)
        return norm(x, update_stats=True), norm.batch_stats[("kernel", "u")][...]

    return in_linen if api == "linen" else in_nnx


def spectral_of_keras(api: str, name: str, steps: int, dtype: Any, calls: int = 3) -> dict[str, float]:
    """The differences of each call in training, and in inference after them, with one u to begin with."""
    layers = importlib.import_module("keras").layers
    random = np.random.default_rng(0)
    x, kernel = (jnp.asarray(random.normal(size=shape), dtype) for shape in SPECTRAL[name])
    u = jnp.asarray(random.normal(size=(1, kernel.shape[-1])), dtype)
    precision = np.dtype(dtype).name
    own = (kernel.shape[-1],) if name == "Dense" else (kernel.shape[-1], kernel.shape[:2])
    norm = layers.SpectralNormalization(getattr(layers, name)(*own, use_bias=False, dtype=precision), steps, dtype=precision)
    norm.build(x.shape)
    norm.kernel.assign(kernel)
    norm.vector_u.assign(u)

    def theirs(u: jax.Array, kernel: jax.Array, x: jax.Array) -> Any:
        y, (u,) = norm.stateless_call([kernel], [u], x, training=True)
        return y, u

    def outcome(call: Callable[..., Any], u: jax.Array) -> Outcome:
        y, pullback, new = jax.vjp(functools.partial(call, u), kernel, x, has_aux=True)
        of_kernel, dx = pullback(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))
        return Outcome(y, dx, {"kernel": of_kernel}, {"u": new})

    found = {}
    got = wanted = Outcome(None, None, {}, {"u": u})
    for i in range(calls):
        got = outcome(spectral_of_ours(api, steps, kernel), got.state["u"])
        wanted = outcome(theirs, wanted.state["u"])
        found |= {f"{part} of call {i}": value for part, value in differences(got, wanted).items()}
        norm(x, training=True)
    found["inference"] = differences(got, wanted._replace(y=norm(x, training=False)))["y"]
    return found


@pytest.mark.parametrize("api", ["linen", "nnx"])
@pytest.mark.parametrize(("name", "steps"), [("Dense", 3), ("Conv2D", 1)], ids=["Dense", "Conv2D"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-10), (np.float32, 1e-5)], ids=["float64", "float32"])
def test_spectral_norm_is_that_of_keras(api: str, name: str, steps: int, dtype: Any, tolerance: float) -> None:
    """With the same u, as many steps, and no epsilon here; Keras's is the least length that it divides by.

    What differs: Keras's u begins with deviations of 0.02, and ours of 1; in training Keras overwrites the kernel, and in
    inference takes it as it is, so that its y is that of the last call in training, where ours takes steps from the last u. Over
    calls without an optimizer's step that gives the same: the kernel over the last sigma.
    """
    pytest.importorskip("keras")
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        found = spectral_of_keras(api, name, steps, dtype)
    assert {"y of call 0", "state.u of call 2", "of_params.kernel of call 2", "inference"} <= set(found)
    assert max(found.values()) < tolerance, found


if __name__ == "__main__":
    for name in (*TORCH, *JAX):
        print(name, *(f"{part} {value:.1e}" for part, value in compared(name, np.float64).items()), sep=", ")
    for name in SPECTRAL:
        with jax.enable_x64(True):
            found = spectral_of_keras("linen", name, 1, np.float64)
        print("keras SpectralNormalization", name, f"{max(found.values()):.1e}", sep=", ")
