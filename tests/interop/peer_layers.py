"""Norms of PyTorch, Keras, haiku and equinox that are trained a step at a time, and ours that go on from their entries.

Arrays have their channels last. `python tests/interop/peer_layers.py` prints the largest differences over random shapes.
"""

import importlib
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np

import jaxnorm
import jaxnorm.linen
import jaxnorm.nnx
from jaxnorm import interop

os.environ["KERAS_BACKEND"] = "jax"  # keras reads it when it is imported
RATE, GROUPS, DECAY = 0.1, 3, 0.8
CLASSES = {
    "batch_norm": "BatchNorm",
    "tracked_instance_norm": "TrackedInstanceNorm",
    "batch_renorm": "BatchRenorm",
    "layer_norm": "LayerNorm",
    "rms_norm": "RMSNorm",
    "group_norm": "GroupNorm",
    "instance_norm": "InstanceNorm",
}


class Outcome(NamedTuple):
    """What a step of training gives: before the parameters are changed by a step down the gradient."""

    y: Any
    dx: Any
    gradients: dict[str, Any]


class Peer(NamedTuple):
    """A layer that keeps its parameters and state: what `from_` takes, a step of training, inference, and what `to_` gives."""

    entries: Callable[[], dict[str, Any]]
    step: Callable[[np.ndarray, np.ndarray], Outcome]
    infer: Callable[[np.ndarray], np.ndarray]
    load: Callable[[dict[str, Any]], Any]


def numbers(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(2, 3, shape)


def to_numpy(tree: Any) -> Any:
    return jax.tree.map(np.asarray, tree)


# PyTorch


def torch_peer(layer: str, shape: tuple[int, ...], dtype: Any) -> Peer:
    torch = importlib.import_module("torch")
    nn, channels, spatial = torch.nn, shape[-1], len(shape) - 2
    kind = getattr(torch, np.dtype(dtype).name)
    make: dict[str, Callable[[], Any]] = {
        "batch_norm": lambda: getattr(nn, f"BatchNorm{max(spatial, 1)}d")(channels),
        "tracked_instance_norm": lambda: getattr(nn, f"InstanceNorm{spatial}d")(channels, affine=True, track_running_stats=True),
        "instance_norm": lambda: getattr(nn, f"InstanceNorm{spatial}d")(channels, affine=True),
        "layer_norm": lambda: nn.LayerNorm(channels),
        "rms_norm": lambda: nn.RMSNorm(channels),
        "group_norm": lambda: nn.GroupNorm(GROUPS, channels),
    }
    module = make[layer]().to(kind)
    last = layer in ("layer_norm", "rms_norm")
    names = {"scale": "weight", "bias": "bias"}
    random = np.random.default_rng(0)
    for name in names.values():
        if getattr(module, name, None) is not None:
            getattr(module, name).data = torch.tensor(random.uniform(0.5, 2, channels), dtype=kind)

    def given(a: np.ndarray) -> Any:
        return torch.tensor(np.ascontiguousarray(a if last else np.moveaxis(a, -1, 1)), dtype=kind)

    def taken(a: Any) -> np.ndarray:
        a = a.detach().numpy()
        return (a if last else np.moveaxis(a, 1, -1)).copy()

    def step(x: np.ndarray, g: np.ndarray) -> Outcome:
        module.train().zero_grad()
        at = given(x).requires_grad_()
        y = module(at)
        y.backward(given(g))
        used = {ours: getattr(module, name) for ours, name in names.items() if getattr(module, name, None) is not None}
        gradients = {ours: parameter.grad.numpy().copy() for ours, parameter in used.items()}
        for parameter in used.values():
            parameter.data -= RATE * parameter.grad
        return Outcome(taken(y), taken(at.grad), gradients)

    return Peer(
        lambda: {name: value.numpy() for name, value in module.state_dict().items()},
        step,
        lambda x: taken(module.eval()(given(x))),
        lambda entries: module.load_state_dict({name: torch.from_numpy(array) for name, array in entries.items()}),
    )


# Keras, haiku and equinox, whose layers are programs of jax


def in_jax(
    entries: Callable[[Any, Any], dict[str, Any]],
    apply: Callable[[Any, Any, jax.Array, bool], tuple[jax.Array, Any]],
    params: Any,
    state: Any,
    gradients: Callable[[Any], dict[str, Any]],
    loaded: Callable[[dict[str, Any], Any], tuple[Any, Any]],
    dtype: Any,
) -> Peer:
    kept = [params, state]

    def load(entries: dict[str, Any]) -> None:
        kept[:] = loaded(jax.tree.map(jnp.asarray, entries), kept[1])

    def step(x: np.ndarray, g: np.ndarray) -> Outcome:
        params, state = kept
        call = lambda params, x: apply(params, state, x, True)  # noqa: E731
        y, pullback, new = jax.vjp(call, params, jnp.asarray(x, dtype), has_aux=True)
        of_params, dx = pullback(jnp.asarray(g, dtype))
        kept[:] = [jax.tree.map(lambda p, d: (p - RATE * d).astype(p.dtype), params, of_params), new]
        return Outcome(y, dx, gradients(of_params))

    return Peer(lambda: to_numpy(entries(*kept)), step, lambda x: apply(*kept, jnp.asarray(x, dtype), False)[0], load)


def keras_peer(layer: str, shape: tuple[int, ...], dtype: Any) -> Peer:
    layers = importlib.import_module("keras").layers
    make: dict[str, Callable[..., Any]] = {
        "batch_norm": layers.BatchNormalization,
        "batch_renorm": lambda **own: layers.BatchNormalization(renorm=True, **own),
        "layer_norm": layers.LayerNormalization,
        "rms_norm": layers.RMSNormalization,
        "group_norm": lambda **own: layers.GroupNormalization(GROUPS, **own),
        "instance_norm": lambda **own: layers.GroupNormalization(-1, **own),
    }
    module = make[layer](dtype=np.dtype(dtype).name)
    module.build(shape)
    mode = layer in ("batch_norm", "batch_renorm")
    trained = [v.name for v in module.trainable_variables]
    others = [v.name for v in module.non_trainable_variables]
    names = {"gamma": "scale", "scale": "scale", "beta": "bias"}

    def apply(params: Any, state: Any, x: jax.Array, train: bool) -> tuple[jax.Array, Any]:
        return module.stateless_call(params, state, x, **({"training": train} if mode else {}))

    return in_jax(
        lambda params, state: dict(zip([*trained, *others], [*params, *state], strict=True)),
        apply,
        [v.value for v in module.trainable_variables],
        [v.value for v in module.non_trainable_variables],
        lambda found: {names[name]: value for name, value in zip(trained, found, strict=True)},
        lambda entries, _: ([entries[name] for name in trained], [entries[name] for name in others]),
        dtype,
    )


def haiku_peer(layer: str, shape: tuple[int, ...], dtype: Any) -> Peer:
    hk = importlib.import_module("haiku")

    def call(x: jax.Array, train: bool) -> jax.Array:
        if layer == "batch_norm":
            return hk.BatchNorm(True, True, DECAY)(x, is_training=train)
        own: dict[str, Callable[[], Any]] = {
            "layer_norm": lambda: hk.LayerNorm(-1, True, True, param_axis=-1),
            "rms_norm": lambda: hk.RMSNorm(-1),
            "group_norm": lambda: hk.GroupNorm(GROUPS),
            "instance_norm": lambda: hk.InstanceNorm(True, True),
        }
        return own[layer]()(x)

    transformed = hk.transform_with_state(call)
    params, state = transformed.init(None, jnp.ones(shape, dtype), True)
    (name,) = params

    def entries(params: Any, state: Any) -> dict[str, Any]:
        averages = {part: state[f"{name}/~/{part}"] for part in ("mean_ema", "var_ema") if f"{name}/~/{part}" in state}
        return {**params[name], **averages}

    return in_jax(
        entries,
        lambda params, state, x, train: transformed.apply(params, state, None, x, train),
        params,
        state,
        lambda found: {"bias" if own == "offset" else own: part.reshape(-1) for own, part in found[name].items()},
        lambda entries, _: (
            {name: {own: part for own, part in entries.items() if own in ("scale", "offset")}},
            {f"{name}/~/{part}": entries[part] for part in ("mean_ema", "var_ema") if part in entries},
        ),
        dtype,
    )


def equinox_peer(layer: str, shape: tuple[int, ...], dtype: Any) -> Peer:
    eqx = importlib.import_module("equinox")
    channels = shape[-1]
    if layer == "batch_norm":
        norm, start = eqx.nn.make_with_state(eqx.nn.BatchNorm)(channels, "batch", mode="batch", momentum=DECAY, dtype=dtype)
    else:
        own: dict[str, Callable[[], Any]] = {
            "layer_norm": lambda: eqx.nn.LayerNorm(channels, dtype=dtype),
            "rms_norm": lambda: eqx.nn.RMSNorm(channels, dtype=dtype),
            "group_norm": lambda: eqx.nn.GroupNorm(GROUPS, channels, dtype=dtype),
        }
        norm, start = own[layer](), None
    last = layer in ("layer_norm", "rms_norm")

    def apply(params: Any, state: Any, x: jax.Array, train: bool) -> tuple[jax.Array, Any]:
        module = eqx.tree_at(lambda m: (m.weight, m.bias), norm, (params["weight"], params["bias"]))
        if last:
            call = module
            for _ in shape[:-1]:
                call = jax.vmap(call)
            return call(x), state
        first = jnp.moveaxis(x, -1, 1)
        if layer == "group_norm":
            return jnp.moveaxis(jax.vmap(module)(first), 1, -1), state
        run = lambda x, state: module(x, state, inference=not train)  # noqa: E731
        y, state = jax.vmap(run, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(first, state)
        return jnp.moveaxis(y, 1, -1), state

    def entries(params: Any, state: Any) -> dict[str, Any]:
        if layer != "batch_norm":
            return params
        mean, var = state.get(norm.batch_state_index)
        return {**params, "mean": mean, "var": var, "counter": state.get(norm.batch_counter)}

    def loaded(entries: dict[str, Any], state: Any) -> tuple[Any, Any]:
        params = {name: entries[name] for name in ("weight", "bias")}
        if layer != "batch_norm":
            return params, state
        state = state.set(norm.batch_state_index, (entries["mean"], entries["var"]))
        return params, state.set(norm.batch_counter, int(entries["counter"]))

    params = {"weight": norm.weight, "bias": norm.bias}
    gradients = lambda found: {"scale": found["weight"], "bias": found["bias"]}  # noqa: E731
    return in_jax(entries, apply, params, start, gradients, loaded, dtype)


PEERS: dict[str, Callable[[str, tuple[int, ...], Any], Peer]] = {
    "torch": torch_peer,
    "keras": keras_peer,
    "haiku": haiku_peer,
    "equinox": equinox_peer,
}
LAYERS = {
    "torch": ("batch_norm", "tracked_instance_norm", "layer_norm", "rms_norm", "group_norm", "instance_norm"),
    "keras": ("batch_norm", "batch_renorm", "layer_norm", "rms_norm", "group_norm", "instance_norm"),
    "haiku": ("batch_norm", "layer_norm", "rms_norm", "group_norm", "instance_norm"),
    "equinox": ("batch_norm", "layer_norm", "rms_norm", "group_norm"),
}


# Ours


def arguments_of(peer: str, layer: str, count: int, dtype: Any = np.float32) -> dict[str, Any]:
    """The arguments of `presets` for the peer's layers above, after so many updates."""
    given: dict[str, Any] = {}
    if layer == "group_norm":
        given["num_groups" if peer == "torch" else "groups"] = GROUPS
    if peer == "torch" and layer in ("instance_norm", "tracked_instance_norm"):
        given["affine"] = True
    if peer == "torch" and layer == "rms_norm":
        given["dtype"] = dtype
    if layer == "batch_norm" and peer in ("haiku", "equinox"):
        given |= {"decay_rate" if peer == "haiku" else "momentum": DECAY, "count": count}
    return given


def imported(peer: str, layer: str, entries: dict[str, Any]) -> tuple[Any, Any]:
    """Parameters and state, or None for a state that there is not."""
    given = {"momentum": DECAY} if peer == "equinox" and layer == "batch_norm" else {}
    found = getattr(interop, f"from_{peer}")(entries, layer=layer, **given)
    return (found, None) if isinstance(found, jaxnorm.AffineParams) else found


def exported(peer: str, layer: str, params: Any, state: Any, *, count: int, ndim: int) -> dict[str, Any]:
    """The entries of the peer's layer that has seen so many updates."""
    own: dict[str, Any] = {"torch": {"count": count} if layer == "batch_norm" else {}, "keras": {}, "equinox": {}, "haiku": {}}[
        peer
    ]
    if peer in ("haiku", "equinox") and layer == "batch_norm":
        own = {"decay_rate" if peer == "haiku" else "momentum": DECAY, "count": count}
    if peer == "haiku":
        own["ndim"] = ndim
    return getattr(interop, f"to_{peer}")(params, state, layer=layer, **own)


def ours(peer: str, layer: str, params: Any, state: Any, count: int, dtype: Any, api: str = "functions") -> Peer:
    """The function of this name, or a module of linen or nnx, with the presets of a peer."""
    kept = [params, state, count]

    def apply(params: Any, state: Any, x: jax.Array, count: int, train: bool) -> tuple[jax.Array, Any]:
        given = arguments_of(peer, layer, count, dtype)
        if api == "functions":
            options = interop.presets(peer, layer, **given)
            function = getattr(jaxnorm, layer)
            if state is None:
                return function(params, x, **options), None
            return function(params, state, x, train=train, **options)
        options = interop.presets(peer, layer, module=True, **given)
        parts = {} if state is None else state._asdict()
        mode = {} if state is None else {"use_running_average": not train}
        if api == "linen":
            norm = getattr(jaxnorm.linen, CLASSES[layer])(**options, **mode)
            used = {name: part for name, part in params._asdict().items() if part is not None}
            variables = {"params": used, **({"batch_stats": parts} if parts else {})}
            y, new = norm.apply(variables, x, mutable=["batch_stats"])
            return y, type(state)(**new["batch_stats"]) if parts and train else state
        norm = getattr(jaxnorm.nnx, CLASSES[layer])(x.shape[-1], rngs=flax.nnx.Rngs(0), **options, **mode)
        for name, part in {**params._asdict(), **parts}.items():
            if part is not None:
                getattr(norm, name).set_value(part)
        y = norm(x)
        return y, state if state is None else type(state)(*(getattr(norm, name)[...] for name in state._fields))

    def step(x: np.ndarray, g: np.ndarray) -> Outcome:
        params, state, count = kept
        call = lambda params, x: apply(params, state, x, count, True)  # noqa: E731
        y, pullback, new = jax.vjp(call, params, jnp.asarray(x, dtype), has_aux=True)
        of_params, dx = pullback(jnp.asarray(g, dtype))
        kept[:] = [jax.tree.map(lambda p, d: (p - RATE * d).astype(p.dtype), params, of_params), new, count + 1]
        return Outcome(y, dx, {name: part for name, part in of_params._asdict().items() if part is not None})

    return Peer(
        lambda: {**kept[0]._asdict(), **({} if kept[1] is None else kept[1]._asdict())},
        step,
        lambda x: apply(kept[0], kept[1], jnp.asarray(x, dtype), kept[2], False)[0],
        lambda _: None,
    )


def difference(a: Any, b: Any) -> float:
    """The largest difference, over the largest number of the second."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape
    return float(np.abs(a - b).max() / np.abs(b).max())


def differences(
    peer: str, layer: str, shape: tuple[int, ...], dtype: Any, *, api: str = "functions", seed: int = 0
) -> dict[str, float]:
    """The largest of y, gradients, parameters and statistics: two steps of the peer's, three of both, and inference."""
    theirs = PEERS[peer](layer, shape, dtype)
    for i in range(2):
        theirs.step(numbers(shape, seed + i), numbers(shape, seed + 10 + i) / 10)
    mine = ours(peer, layer, *imported(peer, layer, theirs.entries()), 2, dtype, api)
    found: dict[str, float] = {}

    def keep(name: str, a: Any, b: Any) -> None:
        found[name] = max(found.get(name, 0.0), difference(a, b))

    for i in range(2, 5):
        x, g = numbers(shape, seed + i), numbers(shape, seed + 10 + i) / 10
        got, wanted = mine.step(x, g), theirs.step(x, g)
        keep("y", got.y, wanted.y)
        keep("gradients", got.dx, wanted.dx)
        assert got.gradients.keys() == wanted.gradients.keys()
        for name, value in wanted.gradients.items():
            keep("gradients", got.gradients[name], value)
        params, state = imported(peer, layer, theirs.entries())
        now = mine.entries()
        for name, part in {**params._asdict(), **({} if state is None else state._asdict())}.items():
            if part is not None:
                keep("statistics" if state is not None and name in state._fields else "parameters", now[name], part)
    keep("inference", mine.infer(x), theirs.infer(x))
    return found


def random_shape(layer: str, random: np.random.Generator) -> tuple[int, ...]:
    """A shape with positions where a group of channels, or a channel of an example, may else be a single number."""
    spatial = int(random.integers(1 if layer in ("group_norm", "instance_norm", "tracked_instance_norm") else 0, 3))
    channels = int(random.integers(1, 12)) * GROUPS
    return (int(random.integers(4, 16)), *(int(n) for n in random.integers(2, 7, spatial)), channels)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    jax.config.update("jax_platforms", "cpu")
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
    chosen = sys.argv[1:] or list(LAYERS)
    print("| peer | layer | type | output | statistics | gradients | parameters | inference |\n|---|---|---|---|---|---|---|---|")
    for peer in chosen:
        for layer in LAYERS[peer]:
            for dtype in (np.float64, np.float32):
                with jax.enable_x64(dtype is np.float64):
                    random = np.random.default_rng(1)
                    runs = [differences(peer, layer, random_shape(layer, random), dtype, seed=100 * i) for i in range(4)]
                parts = ("y", "statistics", "gradients", "parameters", "inference")
                cells = (f"{max(run[part] for run in runs):.0e}" if part in runs[0] else "-" for part in parts)
                print(f"| {peer} | {layer} | {np.dtype(dtype).name} | {' | '.join(cells)} |", flush=True)
