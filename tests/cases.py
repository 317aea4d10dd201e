"""One row for every public layer: how to call it, and which promises hold beyond those of all.

Adding a layer adds a row here; the tests of transformations, dtypes and shardings read nothing else. The data avoid what hides
mistakes: means are not 0, deviations are not 1, no two axes are alike, the state is not fresh, and no rate is a half.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxnorm

SHAPE = (8, 2, 4, 3)
Arguments = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Case:
    """A layer and the arguments that it is tried with.

    Attributes:
      name: the function's name, and after a dash what is special here.
      make: from a dtype of x to the arguments by name, but for the key, the amounts and the options.
      function: the public function.
      amounts: values of every amount that may be traced: the lowest, the usual one, the highest for which all must be finite.
      options: static arguments.
      batched: arguments that have x's batch axis, their first.
      takes_complex: whether x may be complex.
      idle: amounts that change nothing here.
      temporaries: arrays of x's size that a program with the gradient may have besides its results.
      input: what the function calls its x.
      resized: axes of x that y has at another size, which it takes whole.
      exchanges: whether devices that share an example must exchange something.
      keeps: whether more than the key and the amounts is kept for the gradient.
      holds_constants: whether derivatives take some of what it computes for constants.
      own_derivative: whether the derivative is by definition another than that of the value.
      drops_to_zero: of noise, whether what has no gradient is 0, and nothing else is.
      calls_library: whether it needs a library of the device, as for eigenvalues, so that a program for another can't run here.
    """

    name: str
    make: Callable[[Any], Arguments]
    function: Callable[..., Any]
    amounts: Mapping[str, tuple[Any, Any, Any]]
    options: Mapping[str, Any] = field(default_factory=dict)
    batched: tuple[str, ...] = ("x",)
    takes_complex: bool = False
    idle: tuple[str, ...] = ()
    temporaries: int = 3
    input: str = "x"
    resized: tuple[int, ...] = ()
    exchanges: bool = False
    keeps: bool = False
    holds_constants: bool = False
    own_derivative: bool = False
    drops_to_zero: bool = True
    calls_library: bool = False

    @property
    def feature_axes(self) -> tuple[int, ...]:
        """The axes of x along which there are parameters, counted from the front."""
        axes = self.options.get("feature_axes", self.options.get("channel_axis", -1))
        return tuple(axis % len(SHAPE) for axis in ((axes,) if isinstance(axes, int) else axes))

    @property
    def parameters(self) -> tuple[str, ...]:
        return tuple(inspect.signature(self.function).parameters)

    @property
    def is_random(self) -> bool:
        return "key" in self.parameters

    @property
    def is_stateful(self) -> bool:
        return "train" in self.parameters

    @property
    def is_synced(self) -> bool:
        """Whether an axis name makes of a batch on several devices one batch."""
        return self.is_stateful and "axis_name" in self.parameters and not self.is_random  # noise is drawn for each part

    def arguments(self, dtype: Any = jnp.float32) -> Arguments:
        """Returns all arguments but the key and the options, with the usual amounts."""
        return {**self.make(dtype), **{name: usual for name, (_, usual, _) in self.amounts.items()}}

    def __call__(self, key: jax.Array, arguments: Arguments, **options: Any) -> tuple[jax.Array, Any]:
        """Returns the output and the new state (None without one); of an output of two parts the first."""
        drawn = {"key": key} if self.is_random else {}
        result = self.function(**drawn, **self.by_its_names(arguments), **{**self.options, **options})
        if self.is_stateful:
            return result
        return (result[0] if isinstance(result, tuple) else result), None

    def widened(self, arguments: Arguments) -> Arguments:
        """Returns the arguments with x, and what else there is in x's type for every example, in float32."""
        dtype = arguments["x"].dtype
        return {
            name: value.astype(np.float32) if name in self.batched and value.dtype == dtype else value
            for name, value in arguments.items()
        }

    def by_its_names(self, arguments: Arguments) -> Arguments:
        """Returns the arguments as the function names them."""
        arguments = dict(arguments)
        if "constants" in arguments:
            arguments["params"], arguments["state"] = arguments.pop("constants")
        if self.input == "params.direction":
            arguments["params"] = jaxnorm.WeightNormParams(arguments.pop("x"), arguments["params"].scale)
        elif self.input == "branches[0]":
            arguments["branches"] = [arguments.pop(name) for name in ("x", "branch", "second")]
        elif self.input != "x":
            arguments[self.input] = arguments.pop("x")
        return arguments


def data(shape: tuple[int, ...] = SHAPE, dtype: Any = jnp.float32, seed: int = 0, channel_axis: int = -1) -> jax.Array:
    """Returns numbers whose mean and deviation differ from channel to channel; complex ones have different parts."""
    random = np.random.default_rng(seed)
    channel = np.arange(shape[channel_axis])
    along = [1] * len(shape)
    along[channel_axis] = -1
    mean, std = (np.reshape(a, along) for a in (3 - 2.5 * channel, 0.5 + 0.7 * channel))
    x = random.normal(mean, std, shape)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        x = x + 1j * random.normal(1, 3, shape)
    return jnp.asarray(x.astype(dtype))


def counted(shape: tuple[int, ...] = SHAPE) -> jax.Array:
    """Returns a mask of very different counts from row to row: all, none, one, ..."""
    columns = np.arange(np.prod(shape[1:-1])).reshape(1, *shape[1:-1], 1)
    return jnp.asarray(columns < np.array([8, 0, 1, 5, 3, 8, 2, 4][: shape[0]]).reshape(-1, *[1] * (len(shape) - 1)))


def _batch_norm(dtype: Any, channel_axis: int = -1, **more: Any) -> Arguments:
    x = data(dtype=dtype, channel_axis=channel_axis)
    features = x.shape[channel_axis]
    wide = jnp.float64 if jnp.finfo(dtype).bits > 32 else jnp.float32
    params, state = jaxnorm.init_batch_norm(features, param_dtype=wide, dtype=x.dtype if jnp.iscomplexobj(x) else wide)
    params = jaxnorm.AffineParams(*(part + jnp.linspace(-0.5, 2, features, dtype=wide) for part in params))
    return {"params": params, "state": jaxnorm.RunningStats(state.mean + 3, state.var * 7), "x": x, **more}


def _of_vectors(dtype: Any) -> Arguments:
    """All axes but the first are of the channels."""
    arguments = _batch_norm(dtype)
    return {name: a if name == "x" else jax.tree.map(lambda part: jnp.tile(part, (2, 4, 1)), a) for name, a in arguments.items()}


def _kinds(dtype: Any, name: str, *, state: bool = True, params: bool = True, count: int = 3, **more: Any) -> Arguments:
    """So many kinds of examples, of which the second has one."""
    arguments = _batch_norm(dtype, **more)
    given = {} if name == "" else {name: jnp.asarray([0, 2, 0, 2, 1, 2, 2, 0])}
    tables = {"params": params, "state": state}

    def table(part: jax.Array) -> jax.Array:
        return part[None] * jnp.asarray([1.0, 1.5, 0.7][:count], part.dtype)[:, None]

    return {key: jax.tree.map(table, a) if tables.get(key) else a for key, a in arguments.items()} | given


def _batch_renorm(dtype: Any, std: float = 0.05, **more: Any) -> Arguments:
    """With a state so far from the batch that both corrections are at their limits: constants, also for finite differences."""
    arguments = _batch_norm(dtype, **more)
    mean = arguments["state"].mean
    return {**arguments, "state": jaxnorm.RenormStats(mean + 6, 0 * mean + std)}


def _decorrelated(dtype: Any, group_size: int = 3, channel_axis: int = -1, **more: Any) -> Arguments:
    arguments = _batch_norm(dtype, channel_axis, **more)
    mean = arguments["state"].mean
    matrix = jnp.asarray(np.random.default_rng(6).normal(size=(mean.size // group_size, group_size, group_size)), mean.dtype)
    return {
        **arguments,
        "state": jaxnorm.CovarianceStats(mean, matrix @ matrix.mT + 3 * jnp.eye(group_size, dtype=mean.dtype)[None]),
    }


def _layer_norm(dtype: Any, shape: tuple[int, ...] = (3,), **more: Any) -> Arguments:
    wide = jnp.float64 if jnp.finfo(dtype).bits > 32 else jnp.float32
    params = jaxnorm.init_layer_norm(shape, param_dtype=wide)
    varied = jnp.linspace(-0.5, 2, int(np.prod(shape)), dtype=wide).reshape(shape)
    return {"params": jaxnorm.AffineParams(*(part + varied for part in params)), "x": data(dtype=dtype), **more}


def _filter_response(dtype: Any, shape: tuple[int, ...] = (3,), **more: Any) -> Arguments:
    arguments = _layer_norm(dtype, shape, **more)
    params = arguments["params"]
    extra = {"threshold": params.bias / 4, "epsilon": jnp.asarray(-0.3, params.bias.dtype)}
    return {**arguments, "params": jaxnorm.FilterResponseParams(*params, **extra)}


def _dynamic_tanh(dtype: Any) -> Arguments:
    arguments = _layer_norm(dtype)
    params = arguments["params"]
    return {**arguments, "params": jaxnorm.DynamicTanhParams(*params, alpha=jnp.asarray(0.3, params.bias.dtype))}


def _scale_norm(dtype: Any) -> Arguments:
    arguments = _layer_norm(dtype, where=counted() | (jnp.arange(3).reshape(1, 1, 1, 3) == 0))
    return {**arguments, "params": jax.tree.map(lambda part: part[1], arguments["params"])}


def _cosine_norm(dtype: Any) -> Arguments:
    wide = jnp.float64 if jnp.finfo(dtype).bits > 32 else jnp.float32
    return {"kernel": data((3, 3), wide, seed=5), "x": data(dtype=dtype)}


def _modulated(dtype: Any) -> Arguments:
    """A scale of every example, and a bias that is a map."""
    wide = jnp.float64 if jnp.finfo(dtype).bits > 32 else jnp.float32
    return {"x": data(dtype=dtype), "scale": data((8, 3), wide, seed=4), "bias": data(dtype=wide, seed=5)[:, :, :1]}


def _styled(dtype: Any) -> Arguments:
    style = data((8, 6, 4, 3), dtype, seed=4)
    return {"x": data(dtype=dtype), "style": style, "where": counted(), "style_where": (data((8, 6, 4, 3), seed=4) > 2)}


def _weight_norm(dtype: Any) -> Arguments:
    arguments = _layer_norm(dtype)
    return {**arguments, "params": arguments["params"]._replace(bias=None)}


def _standardized(dtype: Any) -> Arguments:
    return {"x": data(dtype=dtype, seed=2), "gain": _layer_norm(dtype)["params"].scale}


def _spectral(dtype: Any) -> Arguments:
    wide = jnp.float64 if jnp.finfo(dtype).bits > 32 else jnp.float32
    return {"x": data(dtype=dtype), "state": jaxnorm.SpectralStats(jnp.asarray([0.5, -0.3, 0.8], wide), jnp.asarray(7.0, wide))}


def _lp(dtype: Any, **more: Any) -> Arguments:
    arguments = _batch_norm(dtype, **more)
    state = arguments["state"]
    return {**arguments, "state": jaxnorm.LpStats(state.mean, state.var)}


def _mean_only(dtype: Any, **more: Any) -> Arguments:
    arguments = _batch_norm(dtype, **more)
    params = arguments["params"]._replace(scale=None)
    return {**arguments, "params": params, "state": jaxnorm.RunningMean(arguments["state"].mean)}


def _gated(dtype: Any, **more: Any) -> Arguments:
    arguments = _batch_norm(dtype, **more)
    gate = jnp.asarray([0.2, 0.9, 0.6], arguments["params"].bias.dtype)
    return {**arguments, "params": jaxnorm.GatedParams(*arguments["params"], gate=gate)}


def _switchable(dtype: Any, **more: Any) -> Arguments:
    arguments = _batch_norm(dtype, **more)
    logits = jnp.asarray([0.2, -0.9, 0.6], arguments["params"].bias.dtype)
    return {**arguments, "params": jaxnorm.SwitchableParams(*arguments["params"], mean_logits=logits, var_logits=logits[::-1])}


def _evonorm_b(dtype: Any, v: bool = False, **more: Any) -> Arguments:
    arguments = _batch_norm(dtype, **more)
    params = arguments["params"]
    if v:
        params = jaxnorm.EvoNormParams(*params, v=jnp.asarray([0.4, 1.5, 0.7], params.bias.dtype))
    return {**arguments, "params": params, "state": jaxnorm.RunningVar(arguments["state"].var)}


def _evonorm_b0(dtype: Any, **more: Any) -> Arguments:
    return _evonorm_b(dtype, v=True, **more)


def _evonorm_s0(dtype: Any, **more: Any) -> Arguments:
    arguments = _layer_norm(dtype, **more)
    v = jnp.asarray([0.4, 1.5, 0.7], arguments["params"].bias.dtype)
    return {**arguments, "params": jaxnorm.EvoNormParams(*arguments["params"], v=v)}


def _virtual(dtype: Any, **more: Any) -> Arguments:
    arguments = _batch_norm(dtype, **more)
    mean, var = arguments.pop("state")
    return {**arguments, "reference": jaxnorm.Moments(mean, var, 0 * var + 20)}


def _frozen(dtype: Any) -> Arguments:
    arguments = _batch_norm(dtype)
    return {"x": arguments["x"], "constants": (arguments["params"], arguments["state"])}


def _cubic(z: Any) -> Any:
    """An activation for jax and NumPy, real and complex numbers alike, that has every derivative."""
    return z - z * z * z / 500


def _x(dtype: Any) -> Arguments:
    return {"x": data(dtype=dtype)}


def _states(dtype: Any) -> Arguments:
    return {"h_prev": data(dtype=dtype, seed=1), "x": data(dtype=dtype)}


def _masked(dtype: Any) -> Arguments:
    return {"mask": data(seed=1) > data(seed=2), "x": data(dtype=dtype)}


def _branches(*names: str) -> Callable[[Any], Arguments]:
    return lambda dtype: _x(dtype) | {name: data(dtype=dtype, seed=4 + i) for i, name in enumerate(names)}


def _dense(dtype: Any) -> Arguments:
    wide = jnp.float64 if jnp.finfo(dtype).bits > 32 else jnp.float32
    return {**_cosine_norm(dtype), "bias": data((3,), wide, seed=6)}


def _noisy_linear(dtype: Any) -> Arguments:
    arguments = _dense(dtype)
    kernel, bias = arguments.pop("kernel"), arguments.pop("bias")
    return {**arguments, "params": jaxnorm.NoisyLinearParams(kernel, bias, 0.3 * kernel, 1 - bias)}


def _variational_dropout(dtype: Any) -> Arguments:
    wide = jnp.float64 if jnp.finfo(dtype).bits > 32 else jnp.float32
    return {"x": data(dtype=dtype), "params": jaxnorm.VariationalDropoutParams(jnp.asarray([-3.0, 0.4, -1.2], wide))}


def _variational_dense(dtype: Any) -> Arguments:
    arguments = _dense(dtype)
    kernel, bias = arguments.pop("kernel"), arguments.pop("bias")
    return {**arguments, "params": jaxnorm.VariationalDenseParams(kernel, bias, bias[:, None] / 3 - 1)}


def _sparse_variational_dense(dtype: Any) -> Arguments:
    arguments = _dense(dtype)
    kernel, bias = arguments.pop("kernel"), arguments.pop("bias")
    log_var = jnp.asarray([[0.2, -2, -1], [1, -3, 3], [-2, 6, 0]], kernel.dtype)
    return {**arguments, "params": jaxnorm.SparseVariationalDenseParams(kernel, bias, log_var)}


def _concrete_dropout(dtype: Any) -> Arguments:
    wide = jnp.float64 if jnp.finfo(dtype).bits > 32 else jnp.float32
    return {"x": data(dtype=dtype), "params": jaxnorm.ConcreteDropoutParams(jnp.asarray(-0.8, wide))}


def _standout(dtype: Any) -> Arguments:
    wide = jnp.float64 if jnp.finfo(dtype).bits > 32 else jnp.float32
    params = jaxnorm.StandoutParams(jnp.asarray(0.7, wide), jnp.asarray(-0.4, wide))
    return {"x": data(dtype=dtype), "preactivation": data(dtype=dtype, seed=4), "params": params}


_EPSILON = {"epsilon": (1e-6, 1e-3, 10.0)}
_TINY_EPSILON = {"epsilon": (0.0, 1e-12, 1e-10)}
_SCALE_OFFSET = {"scale_offset": (0.0, 1.0, 2.0), **_EPSILON}
_BOUNDS = {"mean_bound": (0.0, 0.5, 1.0), "std_bound": (1.0, 1.25, 2.0), "spread": (0.0, 0.1, 0.5)}
_RESPONSE = {"k": (1.0, 2.0, 3.0), "alpha": (0.1, 0.5, 1.0), "beta": (0.0, 0.75, 1.0)}
_MOMENTUM = {"momentum": (0.0, 0.7, 1.0), **_EPSILON}
_MEAN_MOMENTUM = {"momentum": _MOMENTUM["momentum"]}
_LIMITS = {"r_max": (1.0, 1.5, 3.0), "d_max": (0.0, 0.5, 2.0)}
_RATES = np.array([0.1, 0.3, 0.8], np.float32).reshape(1, 1, 1, 3)

CASES = (
    Case("batch_norm-train", _batch_norm, jaxnorm.batch_norm, _MOMENTUM, {"train": True}, takes_complex=True),
    Case(
        "batch_norm-infer", _batch_norm, jaxnorm.batch_norm, _MOMENTUM, {"train": False}, takes_complex=True, idle=("momentum",)
    ),
    Case(
        "batch_norm-where",
        lambda dtype: _batch_norm(dtype, where=counted()),
        jaxnorm.batch_norm,
        _MOMENTUM,
        {"train": True},
        ("x", "where"),
        takes_complex=True,
    ),
    Case(
        "batch_norm-channels_first",
        lambda dtype: _batch_norm(dtype, 1),
        jaxnorm.batch_norm,
        _MOMENTUM,
        {"train": True, "channel_axis": 1, "unbiased": True},
        takes_complex=True,
    ),
    Case(
        "batch_norm-residual_cubic",
        lambda dtype: _batch_norm(dtype, residual=data(dtype=dtype, seed=4) / 8),
        jaxnorm.batch_norm,
        _MOMENTUM,
        {"train": True, "activation": _cubic},
        ("x", "residual"),
        takes_complex=True,
    ),
    Case("batch_renorm-train", _batch_renorm, jaxnorm.batch_renorm, _MOMENTUM | _LIMITS, {"train": True}),
    Case(
        "batch_renorm-infer",
        lambda dtype: _batch_renorm(dtype, std=2.5),
        jaxnorm.batch_renorm,
        _MOMENTUM | _LIMITS,
        {"train": False},
        idle=("momentum", "epsilon", "r_max", "d_max"),
    ),
    Case(
        "batch_renorm-where",
        lambda dtype: _batch_renorm(dtype, where=counted()),
        jaxnorm.batch_renorm,
        _MOMENTUM | _LIMITS,
        {"train": True},
        ("x", "where"),
    ),
    Case(
        "ghost_batch_norm-train",
        _batch_norm,
        jaxnorm.ghost_batch_norm,
        _MOMENTUM,
        {"train": True, "ghost_size": 3},
        takes_complex=True,
    ),
    Case(
        "ghost_batch_norm-infer",
        _batch_norm,
        jaxnorm.ghost_batch_norm,
        _MOMENTUM,
        {"train": False, "ghost_size": 3},
        takes_complex=True,
        idle=("momentum",),
    ),
    Case(
        "ghost_batch_norm-where",
        lambda dtype: _batch_norm(dtype, where=counted()),
        jaxnorm.ghost_batch_norm,
        _MOMENTUM,
        {"train": True, "ghost_size": 2, "unbiased": True},
        ("x", "where"),
        takes_complex=True,
    ),
    Case(
        "ghost_batch_norm-vectors",
        _of_vectors,
        jaxnorm.ghost_batch_norm,
        _MOMENTUM,
        {"train": True, "ghost_size": 4, "channel_axis": (1, 2, 3)},
        takes_complex=True,
    ),
    Case(
        "conditional_batch_norm-where",
        lambda dtype: _kinds(dtype, "labels", state=False, where=counted()),
        jaxnorm.conditional_batch_norm,
        _MOMENTUM,
        {"train": True, "unbiased": True},
        ("x", "where", "labels"),
        takes_complex=True,
    ),
    Case(
        "conditional_batch_norm-infer",
        lambda dtype: _kinds(dtype, "labels", state=False),
        jaxnorm.conditional_batch_norm,
        _MOMENTUM,
        {"train": False},
        ("x", "labels"),
        takes_complex=True,
        idle=("momentum",),
    ),
    Case(
        "domain_batch_norm-train",
        lambda dtype: _kinds(dtype, "domains", params=False),
        jaxnorm.domain_batch_norm,
        _MOMENTUM,
        {"train": True},
        ("x", "domains"),
        takes_complex=True,
    ),
    Case(
        "domain_batch_norm-where",
        lambda dtype: _kinds(dtype, "domains", where=counted()),
        jaxnorm.domain_batch_norm,
        _MOMENTUM,
        {"train": True, "unbiased": True},
        ("x", "where", "domains"),
        takes_complex=True,
        temporaries=4,
    ),
    Case(
        "domain_batch_norm-infer",
        lambda dtype: _kinds(dtype, "domains"),
        jaxnorm.domain_batch_norm,
        _MOMENTUM,
        {"train": False},
        ("x", "domains"),
        takes_complex=True,
        idle=("momentum",),
    ),
    Case(
        "split_batch_norm-infer",
        lambda dtype: _kinds(dtype, "", count=2),
        jaxnorm.split_batch_norm,
        _MOMENTUM,
        {"train": False},
        takes_complex=True,
        idle=("momentum",),
    ),
    Case(
        "split_batch_norm-train",
        lambda dtype: _kinds(dtype, "", count=2),
        jaxnorm.split_batch_norm,
        _MOMENTUM,
        {"train": True},
        takes_complex=True,
    ),
    Case(
        "decorrelated_batch_norm-train",
        _decorrelated,
        jaxnorm.decorrelated_batch_norm,
        _MOMENTUM,
        {"train": True, "group_size": 3},
        temporaries=6,
        calls_library=True,
    ),
    Case(
        "decorrelated_batch_norm-infer",
        _decorrelated,
        jaxnorm.decorrelated_batch_norm,
        _MOMENTUM,
        {"train": False, "group_size": 3},
        idle=("momentum",),
        temporaries=6,
        calls_library=True,
    ),
    Case(
        "decorrelated_batch_norm-where",
        lambda dtype: _decorrelated(dtype, where=counted()),
        jaxnorm.decorrelated_batch_norm,
        _MOMENTUM,
        {"train": True, "group_size": 3, "unbiased": True},
        ("x", "where"),
        temporaries=6,
        calls_library=True,
    ),
    Case("layer_norm", _layer_norm, jaxnorm.layer_norm, _EPSILON, takes_complex=True),
    Case(
        "layer_norm-where",
        lambda dtype: _layer_norm(dtype, (2, 3), where=counted() | (jnp.arange(3).reshape(1, 1, 1, 3) == 1)),
        jaxnorm.layer_norm,
        _EPSILON,
        {"reduction_axes": (2, 3), "feature_axes": (1, 3)},
        ("x", "where"),
        takes_complex=True,
        temporaries=5,
    ),
    Case("rms_norm", _layer_norm, jaxnorm.rms_norm, _SCALE_OFFSET, takes_complex=True),
    Case(
        "rms_norm-where",
        lambda dtype: _layer_norm(dtype, where=counted() | (jnp.arange(3).reshape(1, 1, 1, 3) == 0)),
        jaxnorm.rms_norm,
        _SCALE_OFFSET,
        {"fraction": 0.7},
        ("x", "where"),
        takes_complex=True,
        temporaries=5,
    ),
    Case(
        "gated_rms_norm",
        lambda dtype: _layer_norm(dtype, gate=data(dtype=dtype, seed=4)),
        jaxnorm.gated_rms_norm,
        _SCALE_OFFSET,
        batched=("x", "gate"),
    ),
    Case(
        "gated_rms_norm-gate_first",
        lambda dtype: _layer_norm(
            dtype, gate=1 + abs(data(dtype=dtype, seed=4)), where=counted() | (jnp.arange(3) == 0)[None, None, None]
        ),
        jaxnorm.gated_rms_norm,
        _SCALE_OFFSET,
        {"gate_first": True},
        ("x", "gate", "where"),
        temporaries=5,
    ),
    Case("group_norm", _layer_norm, jaxnorm.group_norm, _EPSILON, {"num_groups": 3}, takes_complex=True),
    Case(
        "group_norm-where",
        lambda dtype: _layer_norm(dtype, (4,), where=counted(), residual=data(dtype=dtype, seed=4) / 8),
        jaxnorm.group_norm,
        _EPSILON,
        {"num_groups": None, "group_size": 2, "channel_axis": 2, "activation": _cubic},
        ("x", "where", "residual"),
        takes_complex=True,
        temporaries=5,
    ),
    Case(
        "group_norm-no_positions",
        _layer_norm,
        jaxnorm.group_norm,
        _EPSILON,
        {"num_groups": 1, "reduction_axes": ()},
        takes_complex=True,
    ),
    Case("instance_norm", _layer_norm, jaxnorm.instance_norm, _EPSILON, takes_complex=True),
    Case(
        "instance_norm-where",
        lambda dtype: _layer_norm(dtype, (2,), where=counted()),
        jaxnorm.instance_norm,
        _EPSILON,
        {"channel_axis": 1, "reduction_axes": (2, 3)},
        ("x", "where"),
        takes_complex=True,
        temporaries=5,
    ),
    Case("filter_response_norm", _filter_response, jaxnorm.filter_response_norm, _EPSILON, temporaries=5),
    Case(
        "filter_response_norm-where",
        lambda dtype: _filter_response(dtype, (2,), where=counted()),
        jaxnorm.filter_response_norm,
        _EPSILON,
        {"channel_axis": 1, "reduction_axes": (2, 3)},
        ("x", "where"),
        temporaries=5,
    ),
    Case("global_response_norm", _layer_norm, jaxnorm.global_response_norm, _EPSILON, takes_complex=True),
    Case(
        "global_response_norm-where",
        lambda dtype: _layer_norm(dtype, (4,), where=counted()),
        jaxnorm.global_response_norm,
        _EPSILON,
        {"channel_axis": 2},
        ("x", "where"),
        takes_complex=True,
        temporaries=5,
    ),
    Case("local_response_norm", _x, jaxnorm.local_response_norm, _RESPONSE, {"size": 3}, takes_complex=True, temporaries=6),
    Case(
        "local_response_norm-even",
        _x,
        jaxnorm.local_response_norm,
        _RESPONSE,
        {"size": 4, "channel_axis": 2},
        takes_complex=True,
        temporaries=6,
    ),
    Case("unit_norm", _x, jaxnorm.unit_norm, {"k": (0.0, 0.7, 1.0), **_EPSILON}, takes_complex=True),
    Case(
        "unit_norm-where",
        lambda dtype: {"x": data(dtype=dtype), "where": counted()},
        jaxnorm.unit_norm,
        {"k": (0.0, 0.7, 1.0), **_EPSILON},
        {"reduction_axes": (1, 3)},
        ("x", "where"),
        takes_complex=True,
        temporaries=5,
    ),
    Case("scale_norm-where", _scale_norm, jaxnorm.scale_norm, _EPSILON, {}, ("x", "where"), takes_complex=True, temporaries=5),
    Case("cosine_norm", _cosine_norm, jaxnorm.cosine_norm, _EPSILON, temporaries=6),
    Case("cosine_norm-centered", _cosine_norm, jaxnorm.cosine_norm, _EPSILON, {"centered": True}, temporaries=6),
    Case("dynamic_tanh", _dynamic_tanh, jaxnorm.dynamic_tanh, {}, temporaries=4),
    Case("layer_scale", _layer_norm, jaxnorm.layer_scale, {}, takes_complex=True),
    Case(
        "modulate",
        _modulated,
        jaxnorm.modulate,
        {"scale_offset": (0.0, 1.0, 2.0)},
        batched=("x", "scale", "bias"),
        takes_complex=True,
    ),
    Case(
        "adaptive_instance_norm-where",
        _styled,
        jaxnorm.adaptive_instance_norm,
        _EPSILON,
        batched=("x", "style", "where", "style_where"),
        takes_complex=True,
        temporaries=6,
    ),
    Case("batch_instance_norm-train", _gated, jaxnorm.batch_instance_norm, _MOMENTUM, {"train": True}, temporaries=5),
    Case(
        "batch_instance_norm-infer",
        _gated,
        jaxnorm.batch_instance_norm,
        _MOMENTUM,
        {"train": False},
        idle=("momentum",),
        temporaries=5,
    ),
    Case(
        "batch_instance_norm-where",
        lambda dtype: _gated(dtype, where=counted()),
        jaxnorm.batch_instance_norm,
        _MOMENTUM,
        {"train": True, "unbiased": True},
        ("x", "where"),
        temporaries=5,
    ),
    Case("switchable_norm-train", _switchable, jaxnorm.switchable_norm, _MOMENTUM, {"train": True}, temporaries=5),
    Case(
        "switchable_norm-infer",
        _switchable,
        jaxnorm.switchable_norm,
        _MOMENTUM,
        {"train": False},
        idle=("momentum",),
        temporaries=5,
    ),
    Case(
        "switchable_norm-where",
        lambda dtype: _switchable(dtype, where=counted()),
        jaxnorm.switchable_norm,
        _MOMENTUM,
        {"train": True, "unbiased": True},
        ("x", "where"),
        temporaries=5,
    ),
    Case(
        "tracked_instance_norm-train",
        _batch_norm,
        jaxnorm.tracked_instance_norm,
        _MOMENTUM,
        {"train": True},
        takes_complex=True,
        temporaries=5,
    ),
    Case(
        "tracked_instance_norm-infer",
        _batch_norm,
        jaxnorm.tracked_instance_norm,
        _MOMENTUM,
        {"train": False},
        idle=("momentum",),
        takes_complex=True,
        temporaries=5,
    ),
    Case(
        "tracked_instance_norm-where",
        lambda dtype: _batch_norm(dtype, where=counted() | (jnp.arange(4) < 2)[None, None, :, None]),
        jaxnorm.tracked_instance_norm,
        _MOMENTUM,
        {"train": True, "unbiased": True},
        ("x", "where"),
        takes_complex=True,
        temporaries=5,
    ),
    Case("virtual_batch_norm", _virtual, jaxnorm.virtual_batch_norm, _EPSILON, takes_complex=True, temporaries=5),
    Case(
        "virtual_batch_norm-where",
        lambda dtype: _virtual(dtype, where=counted()),
        jaxnorm.virtual_batch_norm,
        _EPSILON,
        {},
        ("x", "where"),
        takes_complex=True,
        temporaries=5,
    ),
    Case("frozen_batch_norm", _frozen, jaxnorm.frozen_batch_norm, _EPSILON, takes_complex=True),
    Case(
        "mean_only_batch_norm-train",
        _mean_only,
        jaxnorm.mean_only_batch_norm,
        _MEAN_MOMENTUM,
        {"train": True},
        takes_complex=True,
    ),
    Case(
        "mean_only_batch_norm-where",
        lambda dtype: _mean_only(dtype, where=counted()),
        jaxnorm.mean_only_batch_norm,
        _MEAN_MOMENTUM,
        {"train": True},
        ("x", "where"),
        takes_complex=True,
    ),
    Case(
        "mean_only_batch_norm-infer",
        _mean_only,
        jaxnorm.mean_only_batch_norm,
        _MEAN_MOMENTUM,
        {"train": False},
        idle=("momentum",),
        takes_complex=True,
    ),
    Case("lp_batch_norm-train", _lp, jaxnorm.lp_batch_norm, _MOMENTUM, {"train": True, "p": 1}, temporaries=5),
    Case(
        "lp_batch_norm-where",
        lambda dtype: _lp(dtype, where=counted()),
        jaxnorm.lp_batch_norm,
        _MOMENTUM,
        {"train": True, "p": 2.6, "gaussian": True},
        ("x", "where"),
        temporaries=5,
    ),
    Case(
        "lp_batch_norm-largest",
        _lp,
        jaxnorm.lp_batch_norm,
        _MOMENTUM,
        {"train": True, "p": np.inf, "gaussian": True},
        temporaries=5,
    ),
    Case(
        "lp_batch_norm-infer", _lp, jaxnorm.lp_batch_norm, _MOMENTUM, {"train": False, "p": 3}, idle=("momentum",), temporaries=5
    ),
    Case(
        "iterative_norm-train", _decorrelated, jaxnorm.iterative_norm, _MOMENTUM, {"train": True, "group_size": 3}, temporaries=6
    ),
    Case(
        "iterative_norm-infer",
        _decorrelated,
        jaxnorm.iterative_norm,
        _MOMENTUM,
        {"train": False, "group_size": 3},
        idle=("momentum",),
        temporaries=6,
    ),
    Case(
        "iterative_norm-where",
        lambda dtype: _decorrelated(dtype, where=counted()),
        jaxnorm.iterative_norm,
        _MOMENTUM,
        {"train": True, "group_size": 3, "iterations": 2, "unbiased": True},
        ("x", "where"),
        temporaries=6,
    ),
    Case("evonorm_b0-train", _evonorm_b0, jaxnorm.evonorm_b0, _MOMENTUM, {"train": True}, temporaries=5),
    Case("evonorm_b0-infer", _evonorm_b0, jaxnorm.evonorm_b0, _MOMENTUM, {"train": False}, idle=("momentum",), temporaries=5),
    Case(
        "evonorm_b0-where",
        lambda dtype: _evonorm_b0(dtype, where=counted()),
        jaxnorm.evonorm_b0,
        _MOMENTUM,
        {"train": True, "unbiased": True},
        ("x", "where"),
        temporaries=5,
    ),
    Case("evonorm_b1-train", _evonorm_b, jaxnorm.evonorm_b1, _MOMENTUM, {"train": True}, temporaries=5),
    Case("evonorm_b1-infer", _evonorm_b, jaxnorm.evonorm_b1, _MOMENTUM, {"train": False}, idle=("momentum",), temporaries=5),
    Case("evonorm_b2-train", _evonorm_b, jaxnorm.evonorm_b2, _MOMENTUM, {"train": True}, temporaries=5),
    Case(
        "evonorm_b2-where",
        lambda dtype: _evonorm_b(dtype, where=counted()),
        jaxnorm.evonorm_b2,
        _MOMENTUM,
        {"train": True, "unbiased": True},
        ("x", "where"),
        temporaries=5,
    ),
    Case("evonorm_s0", _evonorm_s0, jaxnorm.evonorm_s0, _EPSILON, {"num_groups": 3}, temporaries=5),
    Case(
        "evonorm_s0-where",
        lambda dtype: _evonorm_s0(dtype, where=counted()),
        jaxnorm.evonorm_s0,
        _EPSILON,
        {"num_groups": 1},
        ("x", "where"),
        temporaries=5,
    ),
    Case("evonorm_s1", _layer_norm, jaxnorm.evonorm_s1, _EPSILON, {"num_groups": 1}, temporaries=5),
    Case(
        "evonorm_s2-where",
        lambda dtype: _layer_norm(dtype, where=counted()),
        jaxnorm.evonorm_s2,
        _EPSILON,
        {"num_groups": None, "group_size": 1},
        ("x", "where"),
        temporaries=5,
    ),
    Case("noisy_batch_norm-train", _batch_norm, jaxnorm.noisy_batch_norm, _MOMENTUM | _BOUNDS, {"train": True}, temporaries=8),
    Case(
        "noisy_batch_norm-where",
        lambda dtype: _batch_norm(dtype, where=counted()),
        jaxnorm.noisy_batch_norm,
        _MOMENTUM | _BOUNDS,
        {"train": True, "bits": 32, "unbiased": True},
        ("x", "where"),
        temporaries=8,
    ),
    Case("weight_norm", _weight_norm, jaxnorm.weight_norm, _EPSILON, input="params.direction"),
    Case(
        "weight_standardization",
        _standardized,
        jaxnorm.weight_standardization,
        _EPSILON,
        {"scaled": True},
        input="kernel",
        temporaries=4,
    ),
    # Derivatives are those of the singular value, if the power iteration has converged.
    Case(
        "spectral_norm-train",
        _spectral,
        jaxnorm.spectral_norm,
        _TINY_EPSILON,
        {"train": True, "steps": 12},
        idle=("epsilon",),
        input="kernel",
        holds_constants=True,
        temporaries=6,
    ),
    Case(
        "spectral_norm-infer",
        _spectral,
        jaxnorm.spectral_norm,
        _TINY_EPSILON,
        {"train": False, "steps": 12},
        idle=("epsilon",),
        input="kernel",
        holds_constants=True,
        temporaries=6,
    ),
    Case("dropout", _x, jaxnorm.dropout, {"rate": (0.0, 0.3, 1.0)}),
    Case("dropout-8_bits", _x, jaxnorm.dropout, {"rate": (0.0, 0.3, 1.0)}, {"bits": 8}),
    Case("dropout-32_bits", _x, jaxnorm.dropout, {"rate": (0.0, 0.3, 1.0)}, {"bits": 32}),
    Case("dropout-shared", _x, jaxnorm.dropout, {"rate": (0.0, 0.3, 1.0)}, {"broadcast_dims": (1, 2)}),
    Case("dropout-rates", _x, jaxnorm.dropout, {"rate": (0 * _RATES, _RATES, 0 * _RATES + 1)}),
    Case("classic_dropout", _x, jaxnorm.classic_dropout, {"rate": (0.0, 0.3, 1.0)}),
    Case("weight_scaled", _x, jaxnorm.weight_scaled, {"rate": (0.0, 0.3, 1.0)}),
    Case("gaussian_dropout", _x, jaxnorm.gaussian_dropout, {"rate": (0.0, 0.3, 0.9)}),
    Case("gaussian_dropout-32_bits", _x, jaxnorm.gaussian_dropout, {"rate": (0.0, 0.3, 0.9)}, {"bits": 32}),
    Case("uniform_dropout", _x, jaxnorm.uniform_dropout, {"beta": (0.0, 0.3, 1.0)}, {"broadcast_dims": (2,)}),
    Case("uniform_dropout-32_bits", _x, jaxnorm.uniform_dropout, {"beta": (0.0, 0.3, 1.0)}, {"bits": 32}),
    Case("spatial_dropout", _x, jaxnorm.spatial_dropout, {"rate": (0.0, 0.3, 1.0)}),
    Case("locked_dropout", _x, jaxnorm.locked_dropout, {"rate": (0.0, 0.3, 1.0)}),
    Case("head_dropout", _x, jaxnorm.head_dropout, {"rate": (0.0, 0.3, 1.0)}, {"head_axis": -2}),
    Case(
        "drop_key",
        _x,
        jaxnorm.drop_key,
        {"rate": (0.0, 0.3, 1.0)},
        {"broadcast_dims": (1,)},
        input="logits",
        drops_to_zero=False,
    ),
    Case("drop_path", _x, jaxnorm.drop_path, {"rate": (0.0, 0.3, 1.0)}),
    Case(
        "alpha_dropout",
        _x,
        jaxnorm.alpha_dropout,
        {"rate": (0.0, 0.3, 0.9), "mean": (-1.0, 0.5, 2.0), "var": (0.0, 1.5, 4.0)},
        drops_to_zero=False,
    ),
    Case("gaussian_noise", _x, jaxnorm.gaussian_noise, {"std": (0.0, 0.3, 2.0)}),
    Case(
        "zoneout",
        _states,
        jaxnorm.zoneout,
        {"rate": (0.0, 0.3, 1.0)},
        batched=("x", "h_prev"),
        input="h",
        drops_to_zero=False,
    ),
    Case("zoneout_mean", _states, jaxnorm.zoneout_mean, {"rate": (0.0, 0.3, 1.0)}, batched=("x", "h_prev"), input="h"),
    Case("apply_mask", _masked, jaxnorm.apply_mask, {"rate": (0.0, 0.3, 0.9)}, batched=("x", "mask")),
    Case("drop_block", _x, jaxnorm.drop_block, {"rate": (0.0, 0.3, 1.0)}, {"block_size": (1, 2)}, exchanges=True),
    Case(
        "drop_block-shared",
        _x,
        jaxnorm.drop_block,
        {"rate": (0.0, 0.3, 1.0)},
        {"block_size": 2, "channel_axis": 1, "shared": True, "rescale": "batch", "bits": 32},
        exchanges=True,
    ),
    Case(
        "drop_block-rates",
        _x,
        jaxnorm.drop_block,
        {"rate": (0 * _RATES, _RATES, 0 * _RATES + 1)},
        {"block_size": (2, 3), "rescale": "expected"},
        exchanges=True,
    ),
    Case(
        "cutout", _x, jaxnorm.cutout, {"fill": (0.0, 0.3, 1.0)}, {"size": (1, 2), "holes": 2}, exchanges=True, drops_to_zero=False
    ),
    Case(
        "max_pool_dropout",
        _x,
        jaxnorm.max_pool_dropout,
        {"rate": (0.0, 0.3, 1.0)},
        {"window": (2, 3), "strides": 1},
        temporaries=5,
        resized=(1, 2),
        keeps=True,
        drops_to_zero=False,
    ),
    Case(
        "max_pool_dropout_mean",
        _x,
        jaxnorm.max_pool_dropout_mean,
        {"rate": (0.0, 0.3, 1.0)},
        {"window": (2, 3), "strides": 1},
        temporaries=20,
        resized=(1, 2),
    ),
    Case(
        "patch_dropout",
        _x,
        jaxnorm.patch_dropout,
        {},
        {"rate": 0.3, "num_prefix_tokens": 0},
        resized=(1,),
        keeps=True,
        drops_to_zero=False,
    ),
    Case(
        "swapout",
        _branches("branch"),
        jaxnorm.swapout,
        {"rate": (0.0, 0.3, 1.0), "branch_rate": (0.0, 0.6, 1.0)},
        batched=("x", "branch"),
        drops_to_zero=False,
    ),
    Case("swapout_mean", _branches("branch"), jaxnorm.swapout_mean, {"rate": (0.0, 0.3, 1.0)}, batched=("x", "branch")),
    Case(
        "fractal_join",
        _branches("branch", "second"),
        jaxnorm.fractal_join,
        {"rate": (0.0, 0.3, 1.0)},
        batched=("x", "branch", "second"),
        input="branches[0]",
        drops_to_zero=False,
    ),
    Case(
        "fractal_join-global",
        _branches("branch", "second"),
        jaxnorm.fractal_join,
        {"rate": (0.0, 0.3, 1.0)},
        {"mode": "global", "columns": 4},
        batched=("x", "branch", "second"),
        idle=("rate",),
        input="branches[0]",
        drops_to_zero=False,
    ),
    Case(
        "fractal_join_mean",
        _branches("branch", "second"),
        jaxnorm.fractal_join_mean,
        {},
        batched=("x", "branch", "second"),
        input="branches[0]",
    ),
    Case(
        "shake_drop",
        _branches("branch"),
        jaxnorm.shake_drop,
        {"rate": (0.0, 0.6, 1.0)},
        batched=("x", "branch"),
        own_derivative=True,
        drops_to_zero=False,
    ),
    Case(
        "shake_drop-element",
        _branches("branch"),
        jaxnorm.shake_drop,
        {"rate": (0.0, 0.3, 1.0)},
        {"per": "element", "bits": 8},
        batched=("x", "branch"),
        own_derivative=True,
        drops_to_zero=False,
    ),
    Case("shake_drop_mean", _branches("branch"), jaxnorm.shake_drop_mean, {"rate": (0.0, 0.3, 1.0)}, batched=("x", "branch")),
    Case(
        "shake_shake",
        _branches("second"),
        jaxnorm.shake_shake,
        {},
        batched=("x", "second"),
        input="first",
        own_derivative=True,
        drops_to_zero=False,
    ),
    Case("shake_shake_mean", _branches("second"), jaxnorm.shake_shake_mean, {}, batched=("x", "second"), input="first"),
    Case("drop_connect", _x, jaxnorm.drop_connect, {"rate": (0.0, 0.3, 1.0)}, input="kernel"),
    Case("embedding_dropout", _x, jaxnorm.embedding_dropout, {"rate": (0.0, 0.3, 1.0)}, input="table"),
    Case(
        "mixout",
        lambda dtype: {**_x(dtype), "target": data(dtype=dtype, seed=4)},
        jaxnorm.mixout,
        {"rate": (0.0, 0.3, 1.0)},
        {"broadcast_dims": (3,)},
        batched=("x", "target"),
        input="params",
        drops_to_zero=False,
    ),
    Case("drop_connect_dense", _dense, jaxnorm.drop_connect_dense, {"rate": (0.0, 0.3, 1.0)}, keeps=True, drops_to_zero=False),
    Case("noisy_linear", _noisy_linear, jaxnorm.noisy_linear, {}, keeps=True, drops_to_zero=False),
    Case(
        "noisy_linear-independent",
        _noisy_linear,
        jaxnorm.noisy_linear,
        {},
        {"factorised": False},
        keeps=True,
        drops_to_zero=False,
    ),
    Case("noisy_linear_mean", _noisy_linear, jaxnorm.noisy_linear_mean, {}),
    Case("variational_dropout", _variational_dropout, jaxnorm.variational_dropout, {}, keeps=True, drops_to_zero=False),
    Case("variational_dense", _variational_dense, jaxnorm.variational_dense, {}, temporaries=7, keeps=True, drops_to_zero=False),
    Case(
        "sparse_variational_dense",
        _sparse_variational_dense,
        jaxnorm.sparse_variational_dense,
        {},
        {"bits": 32},
        temporaries=6,
        keeps=True,
        drops_to_zero=False,
    ),
    Case(
        "sparse_variational_dense_mean",
        _sparse_variational_dense,
        jaxnorm.sparse_variational_dense_mean,
        {"threshold": (-20.0, 0.5, 20.0)},
    ),
    Case(
        "concrete_dropout",
        _concrete_dropout,
        jaxnorm.concrete_dropout,
        {"temperature": (0.2, 0.5, 2.0)},
        temporaries=4,
        keeps=True,
        drops_to_zero=False,
    ),
    Case(
        "concrete_dropout-shared",
        _concrete_dropout,
        jaxnorm.concrete_dropout,
        {"temperature": (0.2, 0.5, 2.0)},
        {"broadcast_dims": (1, 2), "bits": 32},
        keeps=True,
        drops_to_zero=False,
    ),
    Case("standout", _standout, jaxnorm.standout, {}, batched=("x", "preactivation"), keeps=True),
    Case("standout_mean", _standout, jaxnorm.standout_mean, {}, batched=("x", "preactivation")),
    Case("maxout", _x, jaxnorm.maxout, {}, {"pieces": 3}, resized=(3,)),
)
