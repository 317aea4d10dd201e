"""The kinds of work that a layer is measured by, each of which makes a program of a layer."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxnorm.benchmarks import _torch_programs
from jaxnorm.benchmarks._costs import compile_program, residuals
from jaxnorm.benchmarks._layer import AXIS, Builder, Layer, TorchLayer, as_input, with_gradient
from jaxnorm.benchmarks._measure import Program

LAYERS_TO_COMPILE = 48


class Problem(NamedTuple):
    """What the layers of all contenders are given.

    Attributes:
      x: the input, `[..., C]`.
      cotangent: of x's shape and dtype; a layer whose output is smaller takes the first of it.
      mesh: devices over which the first axis is divided; None for one device.
    """

    x: jax.Array
    cotangent: jax.Array
    mesh: Mesh | None


Work = Callable[[Builder, Problem], Program | None]
"""Makes a program of a layer's builder; None where that makes none."""


def forward_and_backward(build: Builder, problem: Problem) -> Program | None:
    """Returns the layer and its gradient for x and all parameters, as in a training step."""
    layer = build(_spec(problem.x))
    if layer is None:
        return None
    if isinstance(layer, TorchLayer):
        return _torch_programs.forward_and_backward(layer, problem.x, problem.cotangent)
    apply = _over_devices(layer, problem.mesh)
    arguments = _arguments(layer, problem)
    y, _ = jax.eval_shape(apply, *arguments)
    cotangent = _as_input(layer, problem, problem.cotangent)
    arguments = (*arguments, cotangent if y.shape == cotangent.shape else cotangent[tuple(map(slice, y.shape))])
    run, costs = compile_program(with_gradient(apply), *arguments)
    key, params, state, x, _ = arguments
    kept = residuals(lambda params, x: apply(key, params, state, x), params, x)
    costs |= {"residual_bytes": kept.nbytes, "residual_input": kept.keeps_input}
    return Program(lambda: run(*arguments), jax.block_until_ready, costs)


def forward(build: Builder, problem: Problem) -> Program | None:
    """Returns the layer alone, as in inference."""
    layer = build(_spec(problem.x))
    if layer is None:
        return None
    if isinstance(layer, TorchLayer):
        return _torch_programs.forward(layer, problem.x)
    arguments = _arguments(layer, problem)
    run, costs = compile_program(_over_devices(layer, problem.mesh), *arguments)
    return Program(lambda: run(*arguments), jax.block_until_ready, costs)


def calls_with_keys(build: Builder, problem: Problem) -> Program | None:
    """Returns the layer alone, called one time after another with each of the keys that are its state."""
    layer = build(_spec(problem.x))
    if not isinstance(layer, Layer):
        return None
    keys, params, x = layer.state, layer.params, problem.x
    run, costs = compile_program(lambda key, params, x: layer.apply(key, params, (), x)[0], keys[0], params, x)
    return Program(lambda: [run(key, params, x) for key in keys], jax.block_until_ready, costs)


def eager_call(build: Builder, problem: Problem) -> Program | None:
    """Returns a call of the layer outside of any jit."""
    layer = build(_spec(problem.x))
    if not isinstance(layer, Layer):
        return None
    arguments = _arguments(layer, problem)
    return Program(lambda: layer.apply(*arguments), jax.block_until_ready, {})


def compilation(build: Builder, problem: Problem) -> Program | None:
    """Returns the compilation of many layers with their gradient, each after a matrix product, from the very beginning."""
    layer = build(_spec(problem.x))
    if not isinstance(layer, Layer):
        return None
    key, params, state, x = _arguments(layer, problem)
    weights = jnp.eye(x.shape[-1], dtype=x.dtype)

    def work(key: jax.Array, weights: jax.Array, x: jax.Array) -> jax.Array:
        def loss(weights: jax.Array) -> jax.Array:
            y = x
            for one in jax.random.split(key, LAYERS_TO_COMPILE):
                y, _ = layer.apply(one, params, state, y @ weights)
            return jnp.sum(y)

        return jax.grad(loss)(weights)

    def compile_anew() -> Any:
        jax.clear_caches()  # of what was traced before
        return compile_program(work, key, weights, x)

    return Program(compile_anew, lambda _: None, {})


def _spec(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _arguments(layer: Layer, problem: Problem) -> tuple[jax.Array, Any, Any, jax.Array]:
    """Returns `(key, params, state, x)`, on the devices of the problem."""
    key, params, state = jax.random.key(1, impl=layer.key_impl), layer.params, layer.state
    if problem.mesh is not None:
        key, params, state = jax.device_put((key, params, state), NamedSharding(problem.mesh, PartitionSpec()))
    return key, params, state, _as_input(layer, problem, problem.x)


def _as_input(layer: Layer, problem: Problem, x: jax.Array) -> jax.Array:
    x = as_input(layer, x)
    return x if problem.mesh is None else jax.device_put(x, NamedSharding(problem.mesh, PartitionSpec(AXIS)))


def _over_devices(layer: Layer, mesh: Mesh | None) -> Callable[..., tuple[jax.Array, Any]]:
    if mesh is None:
        return layer.apply
    whole, part = PartitionSpec(), PartitionSpec(AXIS)
    return jax.shard_map(layer.apply, mesh=mesh, in_specs=(whole, whole, whole, part), out_specs=(part, whole))
