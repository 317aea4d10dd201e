"""What is measured: a row for each function, and how it is measured.

A new function gets its row by a line in `ROWS`; a library that has it too, by an entry in its module in `_peers`.
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax

import jaxnorm
import jaxnorm.linen
from jaxnorm.benchmarks._layer import AXIS, BETA, EPSILON, GHOST, GROUPS, MOMENTUM, RATE, STD, Builder, Layer, with_mask
from jaxnorm.benchmarks._monte_carlo import SAMPLES, at_once, one_call, perceptron
from jaxnorm.benchmarks._networks import resnet_step, transformer_step
from jaxnorm.benchmarks._peers import linen
from jaxnorm.benchmarks._programs import (
    LAYERS_TO_COMPILE,
    Work,
    calls_with_keys,
    compilation,
    eager_call,
    forward,
    forward_and_backward,
)

Shape = tuple[int, ...]


class Kind(NamedTuple):
    """A kind of measurement.

    Attributes:
      title: what is timed.
      work: makes a program of a layer.
      baseline: the name of the contender that all others are compared with.
      baseline_layer: its builder.
      baseline_passes: how many arrays of x's size it reads or writes.
      once: whether a call does everything from the beginning, so that it needs no warm-up and is slow.
    """

    title: str
    work: Work
    baseline: str
    baseline_layer: Builder
    baseline_passes: int = 0
    once: bool = False


class Sizes(NamedTuple):
    """Shapes of x.

    Attributes:
      full: of a run.
      quick: of a quick run.
      least_on_gpu: how many elements x has on a GPU at the least, for which its first axis is made longer; by default as many as
        take 256 MiB in bfloat16, several times the cache of any GPU.
    """

    full: tuple[Shape, ...]
    quick: tuple[Shape, ...]
    least_on_gpu: int = 2**27


class Row(NamedTuple):
    """A function, or a network, in one kind of measurement.

    Attributes:
      name: its name on the command line.
      title: its name in tables.
      kind: the kind of measurement.
      ours: builders of jaxnorm's layers, by the names of the contenders; the first is the default one.
      sizes: shapes of x.
      dtypes: types of x, of which a quick run takes the first.
      layer: the name that peers have for the layer; the row's own if empty.
      peers: names of the contenders that take part; all if None.
      devices: numbers of devices over which x is divided, if it is.
      passes: how many arrays of x's size the work reads or writes at the least; 0 where that is not the point.
      curve: what the time is drawn over.
      headline: whether the report's first line is about it.
      quick: whether a quick run has the row unless it is named.
    """

    name: str
    title: str
    kind: Kind
    ours: Mapping[str, Builder]
    sizes: Sizes
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    layer: str = ""
    peers: tuple[str, ...] | None = None
    devices: tuple[int, ...] = ()
    passes: int = 0
    curve: Literal["", "elements", "devices"] = ""
    headline: bool = False
    quick: bool = True


class Case(NamedTuple):
    """One measurement of a row."""

    shape: Shape
    dtype: str
    devices: int | None


def cases(row: Row, *, quick: bool) -> tuple[Case, ...]:
    """Returns the measurements of a row."""
    shapes, dtypes = (row.sizes.quick, row.dtypes[:1]) if quick else (row.sizes.full, row.dtypes)
    return tuple(Case(*case) for case in itertools.product(shapes, dtypes, row.devices or (None,)))


def noise(function: Callable[..., jax.Array], amount: float, **options: Any) -> Builder:
    """Returns the builder of a function `(key, x, amount, **options)`."""
    return lambda _: Layer(lambda key, params, state, x: (function(key, x, amount, **options), state))


def _masked(x: jax.ShapeDtypeStruct) -> Layer:
    mask = jaxnorm.dropout_mask(jax.random.key(1), x.shape, RATE)
    return Layer(lambda key, params, state, x: (jaxnorm.apply_mask(state, x, RATE), state), state=mask)


def norm(
    function: Callable[..., Any] = jaxnorm.batch_norm,
    init: Callable[..., Any] = jaxnorm.init_batch_norm,
    *,
    channels_first: bool = False,
    **options: Any,
) -> Callable[[jax.ShapeDtypeStruct], Layer]:
    """Returns the builder of a layer with batch statistics and these options, in training if they do not say otherwise."""
    options = {"train": True, "momentum": MOMENTUM, "epsilon": EPSILON, "channel_axis": 1 if channels_first else -1} | options

    def apply(key: jax.Array, params: Any, state: Any, x: jax.Array, where: jax.Array | None = None) -> tuple[jax.Array, Any]:
        return function(params, state, x, where=where, **options)

    return lambda x: Layer(apply, *init(x.shape[-1]), channels_first=channels_first)


ghost_norm = norm(jaxnorm.ghost_batch_norm, jaxnorm.init_ghost_batch_norm, ghost_size=GHOST)


def _norm_of_kinds(function: Callable[..., Any], init: Callable[..., Any], name: str) -> Builder:
    """Returns the builder of a norm of two kinds of examples, which take turns."""

    def build(x: jax.ShapeDtypeStruct) -> Layer:
        def apply(key: jax.Array, params: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
            given = {name: state[1]} if name else {}
            y, new = function(params, state[0], x, **given, train=True, momentum=MOMENTUM, epsilon=EPSILON)
            return y, (new, state[1])

        params, state = init(x.shape[-1])
        return Layer(apply, params, (state, jax.numpy.arange(x.shape[0]) % 2))

    return build


def sample_norm(
    function: Callable[..., jax.Array] = jaxnorm.layer_norm,
    init: Callable[..., Any] = jaxnorm.init_layer_norm,
    **options: Any,
) -> Callable[[jax.ShapeDtypeStruct], Layer]:
    """Returns the builder of a norm of the example with these options."""
    return lambda x: Layer(
        lambda key, params, state, x: (function(params, x, epsilon=EPSILON, **options), state), init(x.shape[-1])
    )


layer_norm = sample_norm()
rms_norm = sample_norm(jaxnorm.rms_norm, jaxnorm.init_rms_norm)
group_norm = sample_norm(jaxnorm.group_norm, jaxnorm.init_group_norm, num_groups=GROUPS)
instance_norm = sample_norm(jaxnorm.instance_norm, jaxnorm.init_instance_norm)


def _gated(x: jax.ShapeDtypeStruct) -> Layer:
    return Layer(
        lambda key, params, state, x: (jaxnorm.gated_rms_norm(params, x, state, epsilon=EPSILON), state),
        jaxnorm.init_gated_rms_norm(x.shape[-1]),
        jax.random.normal(jax.random.key(1), x.shape, x.dtype),
    )


def _without_parameters(function: Callable[..., jax.Array], **options: Any) -> Builder:
    """Returns the builder of a function of x alone, with these options."""
    return lambda _: Layer(lambda key, params, state, x: (function(x, **options), state))


def _with_parameters(function: Callable[..., jax.Array], init: Callable[..., Any]) -> Builder:
    """Returns the builder of a function `(params, x)`."""
    return lambda x: Layer(lambda key, params, state, x: (function(params, x), state), init(x.shape[-1]))


def _cosine(x: jax.ShapeDtypeStruct) -> Layer:
    kernel = jax.random.normal(jax.random.key(1), (x.shape[-1], x.shape[-1]), x.dtype)
    return Layer(lambda key, params, state, x: (jaxnorm.cosine_norm(params, x), state), kernel)


def _of_examples(x: jax.ShapeDtypeStruct) -> Layer:
    scale = jax.random.normal(jax.random.key(1), (x.shape[0], x.shape[-1]))
    return Layer(lambda key, params, state, x: (jaxnorm.modulate(x, *params), state), (scale, scale))


def _patches(_: jax.ShapeDtypeStruct) -> Layer:
    return Layer(lambda key, params, state, x: (jaxnorm.patch_dropout(key, x, 0.5)[0], state))


def _styled(x: jax.ShapeDtypeStruct) -> Layer:
    style = jax.random.normal(jax.random.key(1), x.shape, x.dtype)
    return Layer(lambda key, params, state, x: (jaxnorm.adaptive_instance_norm(x, state), state), state=style)


def _weight_norm(x: jax.ShapeDtypeStruct) -> Layer:
    gain = jax.numpy.ones(x.shape[-1:])
    return Layer(lambda key, params, state, x: (jaxnorm.weight_norm(jaxnorm.WeightNormParams(x, params)), state), gain)


def _spectral_norm(x: jax.ShapeDtypeStruct) -> Layer:
    state = jaxnorm.init_spectral_norm(jax.random.key(0), x.shape[-1])
    return Layer(lambda key, params, state, x: jaxnorm.spectral_norm(state, x, train=True), state=state)


def _join(function: Callable[..., jax.Array], *amount: float) -> Builder:
    """Returns the builder of a join `(key, x, branch, *amount)`, of which the branch is differentiated too."""

    def build(x: jax.ShapeDtypeStruct) -> Layer:
        branch = jax.random.normal(jax.random.key(1), x.shape, x.dtype)
        return Layer(lambda key, params, state, x: (function(key, x, params, *amount), state), branch)

    return build


def _two_branches(key: jax.Array, x: jax.Array, branch: jax.Array, rate: float) -> jax.Array:
    return jaxnorm.fractal_join(key, [x, branch], rate)


def _drop_connect_dense(x: jax.ShapeDtypeStruct) -> Layer:
    features = x.shape[-1]
    kernel, bias = jax.random.normal(jax.random.key(1), (features, features), x.dtype), jax.numpy.zeros(features, x.dtype)

    def apply(key: jax.Array, params: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        kernel, bias = params
        return jaxnorm.drop_connect_dense(key, kernel, bias, x, RATE), state

    return Layer(apply, (kernel, bias))


def _noisy_linear(x: jax.ShapeDtypeStruct) -> Layer:
    params = jaxnorm.init_noisy_linear(jax.random.key(1), x.shape[-1], x.shape[-1])
    return Layer(lambda key, params, state, x: (jaxnorm.noisy_linear(key, params, x), state), params)


def _learned(function: Callable[..., Any], params: Callable[[int], Any]) -> Mapping[str, Builder]:
    """The builder of noise whose amount is learned, of params for so many features; the regularizer is left out."""

    def build(x: jax.ShapeDtypeStruct) -> Layer:
        def apply(key: jax.Array, params: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
            return function(key, params, x)[0], state

        return Layer(apply, params(x.shape[-1]))

    return {"jaxnorm": build}


def _of_kernel(init: Callable[..., Any]) -> Callable[[int], Any]:
    return lambda features: init(jax.random.key(1), features, features)


def _standout(x: jax.ShapeDtypeStruct) -> Layer:
    def apply(key: jax.Array, params: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        return jaxnorm.standout(key, params, x, x), state

    return Layer(apply, jaxnorm.init_standout())


def _pruned(x: jax.ShapeDtypeStruct) -> Layer:
    params = _of_kernel(jaxnorm.init_sparse_variational_dense)(x.shape[-1])
    return Layer(lambda key, params, state, x: (jaxnorm.sparse_variational_dense_mean(params, x), state), params)


def _virtual(x: jax.ShapeDtypeStruct) -> Layer:
    reference = jaxnorm.reference_moments(jax.random.normal(jax.random.key(1), (2, *x.shape[1:])))
    params = jaxnorm.init_virtual_batch_norm(x.shape[-1])
    return Layer(lambda key, params, state, x: (jaxnorm.virtual_batch_norm(params, x, state), state), params, reference)


def _frozen(x: jax.ShapeDtypeStruct) -> Layer:
    params, state = jaxnorm.init_frozen_batch_norm(x.shape[-1])
    return Layer(lambda key, params, state, x: (jaxnorm.frozen_batch_norm(params, state, x), state), params, state)


def _noisy(x: jax.ShapeDtypeStruct) -> Layer:
    def apply(key: jax.Array, params: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        return jaxnorm.noisy_batch_norm(key, params, state, x, train=True, momentum=MOMENTUM)

    return Layer(apply, *jaxnorm.init_noisy_batch_norm(x.shape[-1]))


def _mean_only(x: jax.ShapeDtypeStruct) -> Layer:
    def apply(key: jax.Array, params: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        return jaxnorm.mean_only_batch_norm(params, state, x, train=True, momentum=MOMENTUM)

    return Layer(apply, *jaxnorm.init_mean_only_batch_norm(x.shape[-1]))


def scaled(_: jax.ShapeDtypeStruct) -> Layer:
    """Returns the plain pass, `x * c`."""
    return Layer(lambda key, params, state, x: (x * state.astype(x.dtype), state), state=jax.numpy.float32(1.1))


def identity(_: jax.ShapeDtypeStruct) -> Layer:
    """Returns no layer."""
    return Layer(lambda key, params, state, x: (x, state))


def relu(_: jax.ShapeDtypeStruct) -> Layer:
    """Returns a ReLU."""
    return Layer(lambda key, params, state, x: (jax.nn.relu(x), state))


def _linen_norm_relu(x: jax.ShapeDtypeStruct) -> Layer:
    return linen.batch_norm(x, module=jaxnorm.linen.BatchNorm, activation=jax.nn.relu)


def _linen_dropout(x: jax.ShapeDtypeStruct) -> Layer:
    return linen.dropout(x, module=jaxnorm.linen.Dropout)


def _linen_weight_norm(x: jax.ShapeDtypeStruct) -> Layer:
    return linen.kernel_norm(x, module=jaxnorm.linen.WeightNorm)


def _linen_spectral_norm(x: jax.ShapeDtypeStruct) -> Layer:
    return linen.kernel_norm(x, module=jaxnorm.linen.SpectralNorm, update_stats=True)


def attention(*, rate: float = RATE, **options: Any) -> Builder:
    """Returns the builder of attention of x to itself, a mask for each example and head."""
    return functools.partial(linen.attention, function=jaxnorm.linen.dot_product_attention, rate=rate, **options)


def _batch(name: str, **options: Any) -> dict[str, Builder]:
    """Returns our builder of a layer with statistics of the batch, by its name."""
    return {"jaxnorm": norm(getattr(jaxnorm, name), getattr(jaxnorm, f"init_{name}"), **options)}


def _evonorm_s(kind: str) -> dict[str, Builder]:
    function, init = (getattr(jaxnorm, f"{part}evonorm_{kind}") for part in ("", "init_"))
    return {"jaxnorm": sample_norm(function, init, num_groups=GROUPS)}


_PASS = "plain pass"
_TRAINING = Kind("forward and backward", forward_and_backward, _PASS, scaled, 4)
_ATTENTION = Kind("forward and backward", forward_and_backward, "no dropout", attention(rate=0.0))
_LONG_ATTENTION = _ATTENTION._replace(
    baseline="no dropout, blocks of 256 queries", baseline_layer=attention(rate=0.0, block_size=256)
)
_INFERENCE = Kind("forward", forward, _PASS, scaled, 2)
_CALL = Kind("eager call", eager_call, _PASS, scaled)
_COMPILATION = Kind(f"trace and compile {LAYERS_TO_COMPILE} layers with gradient", compilation, "no layer", identity, once=True)
_TRANSFORMER = Kind("training step", transformer_step, "no dropout", identity)
_SAMPLES = Kind("samples", calls_with_keys, "one call", perceptron(one_call))
_LATE_SAMPLES = Kind(f"{SAMPLES} samples", calls_with_keys, f"{SAMPLES} calls", perceptron(one_call, noisy=3, calls=SAMPLES))
_RESNET = Kind("training step", resnet_step, "no norm", relu)

_ARRAYS = Sizes(
    full=((64, 32, 32, 64), (8192, 1024), (128, 56, 56, 64), (65536, 64), (1001, 1023)),
    quick=((32, 32, 32, 64),),
)
_IMAGES = Sizes(full=((64, 32, 32, 64), (128, 56, 56, 64), (8192, 1024)), quick=((32, 32, 32, 64),))
_MAPS = Sizes(full=((64, 32, 32, 64), (128, 56, 56, 64), (32, 14, 14, 256)), quick=((32, 32, 32, 64),))
_LATE = Sizes(full=((32, 7, 7, 512), (32, 14, 14, 256), (256, 512), (32, 1024)), quick=((32, 7, 7, 64),), least_on_gpu=0)
_TOKENS = Sizes(full=((32, 128, 768), (8192, 1024), (16384, 256), (4096, 4096)), quick=((32, 128, 256),))
_PATCHES = Sizes(full=((32, 197, 768), (256, 197, 384)), quick=((8, 197, 256),))
_VECTORS = Sizes(full=((8192, 1024), (16384, 256)), quick=((1024, 256),))
_SEQUENCES = Sizes(full=((32, 128, 768), (64, 512, 256)), quick=((32, 128, 256),))
_HEADS = Sizes(full=((16, 256, 12, 64), (8, 1024, 8, 64)), quick=((8, 128, 8, 64),))
_QUERIES = Sizes(full=((2, 1024, 8, 64),), quick=((1, 256, 8, 64),), least_on_gpu=0)
_MANY_QUERIES = Sizes(full=((1, 4096, 8, 64),), quick=((1, 1024, 2, 64),), least_on_gpu=0)
_EXAMPLES = Sizes(full=((128, 512),), quick=((32, 128),), least_on_gpu=0)
_ROWS = Sizes(full=((256, 512), (32, 256)), quick=((32, 256),), least_on_gpu=0)
_KERNELS = Sizes(full=((4096, 4096), (3, 3, 512, 512)), quick=((1024, 256),))
_IMAGE = Sizes(full=((64, 32, 32, 64),), quick=((32, 32, 32, 64),))
_GROWING = Sizes(
    full=tuple((10**power // 128, 128) for power in range(4, 9)),
    quick=tuple((10**power // 128, 128) for power in range(4, 7)),
    least_on_gpu=0,
)
_SMALL = Sizes(full=((32, 64),), quick=((32, 64),), least_on_gpu=0)
_TEXT = Sizes(full=((16, 128),), quick=((2, 128),), least_on_gpu=256 * 128)
_PHOTOS = Sizes(full=((64, 32, 32, 3),), quick=((8, 32, 32, 3),), least_on_gpu=1024 * 32 * 32 * 3)

_F32 = ("float32",)
_FLAX = ("flax linen",)
_BITS = {f"jaxnorm, {bits} bits": noise(jaxnorm.dropout, RATE, bits=bits) for bits in (16, 8, 32)}
_GAUSSIAN = {f"jaxnorm, {bits} bits": noise(jaxnorm.gaussian_dropout, RATE, bits=bits) for bits in (16, 32)}
_UNIFORM = {f"jaxnorm, {bits} bits": noise(jaxnorm.uniform_dropout, BETA, bits=bits) for bits in (16, 32)}
_DROPOUT = {"jaxnorm": noise(jaxnorm.dropout, RATE)}
_ALPHA = {"jaxnorm": noise(jaxnorm.alpha_dropout, RATE)}
_IN_BLOCKS = {"jaxnorm, blocks of 256 queries": attention(block_size=256)}
_ADDITIVE = {f"jaxnorm, {bits} bits": noise(jaxnorm.gaussian_noise, STD, bits=bits) for bits in (16, 32)}
_DROP_BLOCK = {
    "jaxnorm": noise(jaxnorm.drop_block, RATE),
    "jaxnorm, one mask for all channels": noise(jaxnorm.drop_block, RATE, shared=True),
}
_NORM = {"jaxnorm": norm()}
_NORM_RELU = {"jaxnorm": norm(activation=jax.nn.relu)}
_RENORM = {"jaxnorm": norm(jaxnorm.batch_renorm, jaxnorm.init_batch_renorm)}
_GHOST = {"jaxnorm": ghost_norm}
_CONDITIONAL = {"jaxnorm": _norm_of_kinds(jaxnorm.conditional_batch_norm, jaxnorm.init_conditional_batch_norm, "labels")}
_DOMAIN = {"jaxnorm": _norm_of_kinds(jaxnorm.domain_batch_norm, jaxnorm.init_domain_batch_norm, "domains")}
_SPLIT = {"jaxnorm": _norm_of_kinds(jaxnorm.split_batch_norm, jaxnorm.init_split_batch_norm, "")}
_MASKED_NORM = {"jaxnorm": with_mask(norm())}
_DECORRELATED = {"jaxnorm": norm(jaxnorm.decorrelated_batch_norm, jaxnorm.init_decorrelated_batch_norm)}
_LAYER_NORM = {"jaxnorm": layer_norm}
_FILTER_RESPONSE = {"jaxnorm": sample_norm(jaxnorm.filter_response_norm, jaxnorm.init_filter_response_norm)}
_GLOBAL_RESPONSE = {"jaxnorm": sample_norm(jaxnorm.global_response_norm, jaxnorm.init_global_response_norm)}
_WEIGHT_NORM = {"jaxnorm": _weight_norm, "jaxnorm.linen": _linen_weight_norm}
_SPECTRAL_NORM = {"jaxnorm": _spectral_norm, "jaxnorm.linen": _linen_spectral_norm}
_SYNC_NORM = {"jaxnorm": norm(axis_name=AXIS)}
_MC_PREDICT = {f"jaxnorm, {n} sample{'s' * (n > 1)}": perceptron(at_once(n)) for n in (1, 8, 16, 32, 64, 128)}
_MC_PREDICT_LATE = {"jaxnorm": perceptron(at_once(SAMPLES), noisy=3)}

# fmt: off
ROWS = (
    Row("dropout", "Dropout", _TRAINING, _BITS, _ARRAYS, passes=4, headline=True),
    Row("gaussian_dropout", "Gaussian dropout", _TRAINING, _GAUSSIAN, _ARRAYS, passes=4),
    Row("uniform_dropout", "Uniform dropout", _TRAINING, _UNIFORM, _ARRAYS, passes=4),
    Row("alpha_dropout", "Alpha dropout", _TRAINING, _ALPHA, _ARRAYS, passes=4, quick=False),
    Row("gaussian_noise", "Additive Gaussian noise", _TRAINING, _ADDITIVE, _ARRAYS, passes=4, quick=False),
    Row("spatial_dropout", "Spatial dropout", _TRAINING, {"jaxnorm": noise(jaxnorm.spatial_dropout, RATE)}, _MAPS, passes=4,
        quick=False),
    Row("locked_dropout", "Locked dropout", _TRAINING, {"jaxnorm": noise(jaxnorm.locked_dropout, RATE)}, _SEQUENCES, passes=4,
        quick=False),
    Row("head_dropout", "Head dropout", _TRAINING, {"jaxnorm": noise(jaxnorm.head_dropout, RATE, head_axis=-2)}, _HEADS, passes=4,
        quick=False),
    Row("drop_key", "DropKey", _TRAINING, {"jaxnorm": noise(jaxnorm.drop_key, RATE)}, _ARRAYS, passes=4, quick=False),
    Row("attention", "Attention with dropout", _ATTENTION, {"jaxnorm": attention()} | _IN_BLOCKS, _QUERIES, quick=False),
    Row("long_attention", "Attention of many queries with dropout", _LONG_ATTENTION, _IN_BLOCKS | {"jaxnorm": attention()},
        _MANY_QUERIES, layer="attention", quick=False),
    Row("drop_path", "Drop path", _TRAINING, {"jaxnorm": noise(jaxnorm.drop_path, RATE)}, _MAPS, passes=4, quick=False),
    Row("zoneout", "Zoneout", _TRAINING, {"jaxnorm": _join(jaxnorm.zoneout, RATE)}, _VECTORS, passes=6, quick=False),
    Row("apply_mask", "Dropout by a mask that is drawn", _TRAINING, {"jaxnorm": _masked}, _ARRAYS, passes=4, quick=False),
    Row("drop_block", "DropBlock", _TRAINING, _DROP_BLOCK, _MAPS, passes=4, quick=False),
    Row("cutout", "Cutout", _TRAINING, {"jaxnorm": noise(jaxnorm.cutout, 8)}, _MAPS, passes=4, quick=False),
    Row("max_pool_dropout", "Max-pooling dropout", _TRAINING, {"jaxnorm": noise(jaxnorm.max_pool_dropout, RATE, window=2)},
        _MAPS, passes=4, quick=False),
    Row("max_pool_dropout_mean", "Max-pooling dropout", _INFERENCE,
        {"jaxnorm": _without_parameters(jaxnorm.max_pool_dropout_mean, rate=RATE, window=2)}, _MAPS, passes=2, quick=False),
    Row("patch_dropout", "Patch dropout", _TRAINING, {"jaxnorm": _patches}, _PATCHES, passes=3, quick=False),
    Row("swapout", "Swapout", _TRAINING, {"jaxnorm": _join(jaxnorm.swapout, RATE)}, _ARRAYS, passes=6, quick=False),
    Row("fractal_join", "FractalNet's join of two", _TRAINING, {"jaxnorm": _join(_two_branches, RATE)}, _MAPS, passes=6,
        quick=False),
    Row("shake_drop", "ShakeDrop", _TRAINING, {"jaxnorm": _join(jaxnorm.shake_drop, RATE)}, _MAPS, passes=6, quick=False),
    Row("shake_shake", "Shake-Shake", _TRAINING, {"jaxnorm": _join(jaxnorm.shake_shake)}, _MAPS, passes=6, quick=False),
    Row("drop_connect", "DropConnect of a kernel", _TRAINING, {"jaxnorm": noise(jaxnorm.drop_connect, RATE)}, _KERNELS,
        layer="dropout", peers=_FLAX, passes=4, quick=False),
    Row("embedding_dropout", "Embedding dropout", _TRAINING, {"jaxnorm": noise(jaxnorm.embedding_dropout, RATE)}, _VECTORS,
        passes=4, quick=False),
    Row("mixout", "Mixout", _TRAINING, {"jaxnorm": _join(jaxnorm.mixout, RATE)}, _KERNELS, passes=6, quick=False),
    Row("drop_connect_dense", "DropConnect of each example", _TRAINING, {"jaxnorm": _drop_connect_dense}, _EXAMPLES, quick=False),
    Row("noisy_linear", "Noisy linear layer", _TRAINING, {"jaxnorm": _noisy_linear}, _VECTORS, quick=False),
    Row("variational_dropout", "Variational dropout", _TRAINING,
        _learned(jaxnorm.variational_dropout, jaxnorm.init_variational_dropout), _ARRAYS, passes=5, quick=False),
    Row("variational_dense", "Variational dense layer", _TRAINING,
        _learned(jaxnorm.variational_dense, _of_kernel(jaxnorm.init_variational_dense)), _VECTORS, quick=False),
    Row("sparse_variational_dense", "Sparse variational dense layer", _TRAINING,
        _learned(jaxnorm.sparse_variational_dense, _of_kernel(jaxnorm.init_sparse_variational_dense)), _VECTORS, quick=False),
    Row("sparse_variational_dense_mean", "Sparse variational dense layer", _INFERENCE, {"jaxnorm": _pruned}, _VECTORS,
        quick=False),
    Row("concrete_dropout", "Concrete dropout", _TRAINING,
        _learned(jaxnorm.concrete_dropout, lambda _: jaxnorm.init_concrete_dropout()), _ARRAYS, passes=5, quick=False),
    Row("standout", "Standout", _TRAINING, {"jaxnorm": _standout}, _ARRAYS, passes=6, quick=False),
    Row("maxout", "Maxout of two", _TRAINING, {"jaxnorm": _without_parameters(jaxnorm.maxout, pieces=2)}, _MAPS, passes=4,
        quick=False),
    Row("batch_norm", "Batch norm", _TRAINING, _NORM, _IMAGES, passes=8, headline=True),
    Row("batch_norm_inference", "Batch norm", _INFERENCE, {"jaxnorm": norm(train=False)}, _IMAGES, passes=2),
    Row("batch_norm_relu", "Batch norm and ReLU", _TRAINING, _NORM_RELU, _IMAGES, passes=8, headline=True),
    Row("batch_norm_late", "Batch norm in a late layer", _TRAINING, _NORM, _LATE, layer="batch_norm", passes=8, quick=False),
    Row("batch_norm_masked", "Masked batch norm", _TRAINING, _MASKED_NORM, _IMAGES, passes=8, quick=False),
    Row("batch_norm_masked_late", "Masked batch norm in a late layer", _TRAINING, _MASKED_NORM, _LATE,
        layer="batch_norm_masked", passes=8, quick=False),
    Row("batch_norm_channels_first", "Batch norm with the channels first", _TRAINING, {"jaxnorm": norm(channels_first=True)},
        _IMAGES, passes=8, quick=False),
    Row("layer_norm", "Layer norm", _TRAINING, _LAYER_NORM, _TOKENS, passes=8, headline=True),
    Row("layer_norm_inference", "Layer norm", _INFERENCE, _LAYER_NORM, _TOKENS, layer="layer_norm", passes=2),
    Row("rms_norm", "RMS norm", _TRAINING, {"jaxnorm": rms_norm}, _TOKENS, passes=8, headline=True),
    Row("rms_norm_inference", "RMS norm", _INFERENCE, {"jaxnorm": rms_norm}, _TOKENS, layer="rms_norm", passes=2, quick=False),
    Row("gated_rms_norm", "Gated RMS norm", _TRAINING, {"jaxnorm": _gated}, _TOKENS, passes=10, quick=False),
    Row("group_norm", "Group norm", _TRAINING, {"jaxnorm": group_norm}, _IMAGES, passes=8, headline=True),
    Row("instance_norm", "Instance norm", _TRAINING, {"jaxnorm": instance_norm}, _MAPS, passes=8),
    Row("evonorm_s0", "EvoNorm-S0", _TRAINING, _evonorm_s("s0"), _MAPS, passes=8, quick=False),
    Row("evonorm_s1", "EvoNorm-S1", _TRAINING, _evonorm_s("s1"), _MAPS, passes=8, quick=False),
    Row("evonorm_s2", "EvoNorm-S2", _TRAINING, _evonorm_s("s2"), _MAPS, passes=8, quick=False),
    Row("filter_response_norm", "Filter response norm", _TRAINING, _FILTER_RESPONSE, _MAPS, passes=8, quick=False),
    Row("global_response_norm", "Global response norm", _TRAINING, _GLOBAL_RESPONSE, _MAPS, passes=8, quick=False),
    Row("local_response_norm", "Local response norm", _TRAINING, {"jaxnorm": _without_parameters(jaxnorm.local_response_norm)},
        _MAPS, passes=8, quick=False),
    Row("unit_norm", "Unit norm", _TRAINING, {"jaxnorm": _without_parameters(jaxnorm.unit_norm, k=0.0)}, _TOKENS, passes=8,
        quick=False),
    Row("scale_norm", "Scale norm", _TRAINING, {"jaxnorm": _with_parameters(jaxnorm.scale_norm, jaxnorm.init_scale_norm)},
        _TOKENS, passes=8, quick=False),
    Row("cosine_norm", "Cosine norm", _TRAINING, {"jaxnorm": _cosine}, _VECTORS, passes=8, quick=False),
    Row("dynamic_tanh", "Dynamic tanh", _TRAINING, {"jaxnorm": _with_parameters(jaxnorm.dynamic_tanh, jaxnorm.init_dynamic_tanh)},
        _TOKENS, passes=8, quick=False),
    Row("layer_scale", "Layer scale", _TRAINING, {"jaxnorm": _with_parameters(jaxnorm.layer_scale, jaxnorm.init_layer_scale)},
        _TOKENS, passes=8, quick=False),
    Row("modulate", "Modulation of each example", _TRAINING, {"jaxnorm": _of_examples}, _MAPS, passes=8, quick=False),
    Row("adaptive_instance_norm", "Adaptive instance norm", _TRAINING, {"jaxnorm": _styled}, _MAPS, passes=10, quick=False),
    Row("weight_norm", "Weight norm", _TRAINING, _WEIGHT_NORM, _KERNELS, passes=8, quick=False),
    Row("weight_standardization", "Weight standardization", _TRAINING,
        {"jaxnorm": _without_parameters(jaxnorm.weight_standardization)}, _KERNELS, passes=8, quick=False),
    Row("spectral_norm", "Spectral norm", _TRAINING, _SPECTRAL_NORM, _KERNELS, passes=8, quick=False),
    Row("batch_renorm", "Batch renorm", _TRAINING, _RENORM, _IMAGES, passes=8),
    Row("conditional_batch_norm", "Conditional batch norm", _TRAINING, _CONDITIONAL, _IMAGES, passes=8, quick=False),
    Row("domain_batch_norm", "Domain-specific batch norm", _TRAINING, _DOMAIN, _IMAGES, passes=8, quick=False),
    Row("split_batch_norm", "Split batch norm", _TRAINING, _SPLIT, _IMAGES, passes=8, quick=False),
    Row("ghost_batch_norm", "Ghost batch norm", _TRAINING, _GHOST, _IMAGES, passes=8, quick=False),
    Row("evonorm_b0", "EvoNorm-B0", _TRAINING, _batch("evonorm_b0"), _MAPS, passes=8, quick=False),
    Row("evonorm_b1", "EvoNorm-B1", _TRAINING, _batch("evonorm_b1"), _MAPS, passes=8, quick=False),
    Row("evonorm_b2", "EvoNorm-B2", _TRAINING, _batch("evonorm_b2"), _MAPS, passes=8, quick=False),
    Row("batch_instance_norm", "Batch-instance norm", _TRAINING, _batch("batch_instance_norm"), _MAPS, passes=8, quick=False),
    Row("switchable_norm", "Switchable norm", _TRAINING, _batch("switchable_norm"), _MAPS, passes=8, quick=False),
    Row("tracked_instance_norm", "Tracked instance norm", _TRAINING, _batch("tracked_instance_norm"), _MAPS, passes=8,
        quick=False),
    Row("virtual_batch_norm", "Virtual batch norm", _TRAINING, {"jaxnorm": _virtual}, _MAPS, passes=8, quick=False),
    Row("frozen_batch_norm", "Frozen batch norm", _TRAINING, {"jaxnorm": _frozen}, _IMAGES, passes=4, quick=False),
    Row("mean_only_batch_norm", "Mean-only batch norm", _TRAINING, {"jaxnorm": _mean_only}, _IMAGES, passes=6, quick=False),
    Row("noisy_batch_norm", "Noisy batch norm", _TRAINING, {"jaxnorm": _noisy}, _IMAGES, passes=10, quick=False),
    Row("lp_batch_norm", "L1 batch norm", _TRAINING, _batch("lp_batch_norm", p=1), _IMAGES, passes=8, quick=False),
    Row("iterative_norm", "IterNorm", _TRAINING, _batch("iterative_norm"), _IMAGES, passes=8, quick=False),
    Row("decorrelated_batch_norm", "Decorrelated batch norm", _TRAINING, _DECORRELATED, _IMAGES, passes=8),
    Row("sync_batch_norm", "Batch norm on 8 devices", _TRAINING, _SYNC_NORM, _IMAGES, devices=(8,), passes=8),
    Row("transformer", "Transformer with dropout", _TRANSFORMER, _BITS | {"jaxnorm.linen": _linen_dropout}, _TEXT, _F32,
        layer="dropout", peers=("flax linen", "flax linen, philox2x32 keys"), headline=True, quick=False),
    Row("resnet", "ResNet with batch norm", _RESNET, _NORM_RELU | {"jaxnorm.linen": _linen_norm_relu}, _PHOTOS, _F32,
        layer="batch_norm_relu", peers=("flax linen", "flax nnx", "torch"), headline=True, quick=False),
    Row("mc_predict", "MC dropout", _SAMPLES, _MC_PREDICT, _ROWS, _F32, quick=False),
    Row("mc_predict_late", "MC dropout in the last third", _LATE_SAMPLES, _MC_PREDICT_LATE, _ROWS, _F32, quick=False),
    Row("dropout_call", "Dropout", _CALL, _DROPOUT, _SMALL, _F32, layer="dropout", peers=_FLAX),
    Row("batch_norm_call", "Batch norm", _CALL, _NORM, _SMALL, _F32, layer="batch_norm", peers=_FLAX),
    Row("dropout_compilation", "Dropout", _COMPILATION, _BITS, _SMALL, _F32, layer="dropout", peers=_FLAX, quick=False),
    Row("dropout_growth", "Dropout", _TRAINING, _DROPOUT, _GROWING, _F32, layer="dropout", peers=_FLAX, curve="elements"),
    Row("batch_norm_growth", "Batch norm", _TRAINING, _NORM, _GROWING, _F32, layer="batch_norm", peers=_FLAX, curve="elements"),
    Row("sync_batch_norm_growth", "Batch norm on several devices", _TRAINING, _SYNC_NORM, _IMAGE, _F32,
        layer="sync_batch_norm", peers=_FLAX, devices=(1, 2, 4, 8), curve="devices", quick=False),
)
# fmt: on


def describe_row(row: Row) -> str:
    """Returns what a row measures, in a line."""
    return f"{row.title}, {row.kind.title}" + (f", by the number of {row.curve}" if row.curve else "")


def chosen_rows(only: Sequence[str] = (), *, quick: bool = False) -> tuple[Row, ...]:
    """Returns the rows of these names, or all of a run, in the order of the table."""
    return tuple(row for row in ROWS if (row.name in only if only else row.quick or not quick))


def row_named(name: str) -> Row:
    """Returns the row of this name.

    Raises:
      ValueError: if there is none.
    """
    for row in ROWS:
        if row.name == name:
            return row
    raise ValueError(f"unknown row {name!r}; there is {', '.join(row.name for row in ROWS)}")
