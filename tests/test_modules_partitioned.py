"""Parameters with metadata that say how they are sharded, in all modules of linen and of nnx that take initializers."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax_layers import batch, close
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxnorm
import jaxnorm.linen
import jaxnorm.nnx

SIZE = 8
X = batch((4, 6, SIZE))
FIELDS: dict[str, dict[str, Any]] = {
    "DecorrelatedBatchNorm": {"group_size": 2},
    "EvoNormS0": {"num_groups": 4},
    "EvoNormS1": {"num_groups": 4},
    "EvoNormS2": {"num_groups": 4},
    "GhostBatchNorm": {"ghost_size": 2},
    "GroupNorm": {"num_groups": 4},
    "IterativeNorm": {"group_size": 2},
    "MeanOnlyBatchNorm": {"use_scale": True},
    "RMSNorm": {"use_bias": True},
}
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "ConditionalBatchNorm": (jnp.array([0, 1, 1, 0]),),
    "DomainBatchNorm": (1,),
    "GatedRMSNorm": (batch(X.shape, seed=2),),
    "VirtualBatchNorm": (jaxnorm.reference_moments(batch((5, 6, SIZE), seed=3)),),
}
NORMAL = flax.linen.initializers.normal()
DIVIDED = [
    (AxisType.Auto, P("data", None, "model")),
    (AxisType.Explicit, P("data", None, "model")),
]


def initialized(name: str) -> list[str]:
    """The parameters of a module that have a field for their initializer."""
    fields = dataclasses.fields(getattr(jaxnorm.linen, name))
    return [field.name.removesuffix("_init") for field in fields if field.name.endswith("_init") and callable(field.default)]


NOISY = {"DropConnectDense": {"rate": 0.3}, "SparseVariationalDense": {}, "VariationalDense": {}}
NAMES = [name for name in jaxnorm.linen.__all__ if name[0].isupper() and initialized(name) and name not in NOISY]
each_module = pytest.mark.parametrize("name", NAMES)
each_kind = pytest.mark.parametrize("name", ["BatchNorm", "LayerNorm"])
each_division = pytest.mark.parametrize(("axis_type", "spec"), DIVIDED, ids=["auto", "explicit"])


def names_of(name: str, part: str) -> tuple[str | None, ...]:
    """The names of the axes of a parameter."""
    rows = part.startswith("kernel") or name in ("ConditionalBatchNorm", "DomainBatchNorm", "SplitBatchNorm")
    return (None, "model") if rows else ("model",)


def make_mesh(axis_type: AxisType = AxisType.Auto, names: tuple[str, str] = ("data", "model")) -> jax.sharding.Mesh:
    return jax.make_mesh((2, 4), names, axis_types=(axis_type,) * 2)


def placed(mesh: jax.sharding.Mesh, tree: Any, specs: Any) -> Any:
    return jax.device_put(tree, jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs))


def check_specs(name: str, specs: Any, stacked: tuple[str, ...] = ()) -> None:
    """The parameters with initializers are to be sharded as it was said, and nothing else is."""
    met = set()
    for path, spec in jax.tree_util.tree_leaves_with_path(specs):
        words = [str(key.key) for key in path]
        own = [part for part in initialized(name) if part in words[-1] or f"{part}s" in words]
        if own and "layer_instance" not in words:
            met.add(own[0])
            assert spec == P(*stacked, *names_of(name, own[0])), path
        else:
            assert "model" not in spec, path
    assert met == set(initialized(name))


def check_division(name: str, y: jax.Array, x: jax.Array) -> None:
    """Y is divided over devices as x is; where it is a product, as the matrices are."""
    if name == "CosineNorm":
        assert y.sharding.spec == P("data", None, "model")
    elif name != "WeightNorm":
        assert y.sharding.is_equivalent_to(x.sharding, x.ndim)


# linen


def of_linen(name: str, initializer: Callable[[str], Any]) -> Any:
    module = getattr(jaxnorm.linen, name)
    given: dict[str, Any] = {f"{part}_init": initializer(part) for part in initialized(name)}
    if "use_running_average" in module.__dataclass_fields__:
        given["use_running_average"] = False
    if name == "WeightNorm":
        given["layer_instance"] = flax.linen.Dense(SIZE)
    if name == "CosineNorm":
        given["features"] = SIZE
    return module(**given, **FIELDS.get(name, {}))


def partitioned_in_linen(name: str) -> Any:
    return of_linen(name, lambda part: flax.linen.with_partitioning(NORMAL, names_of(name, part)))


@pytest.mark.slow
@each_division
@each_module
def test_partitioned_parameters_of_linen(name: str, axis_type: AxisType, spec: P) -> None:
    arguments = ARGUMENTS.get(name, ())
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    module = partitioned_in_linen(name)
    boxed = module.init(keys, X, *arguments)
    plain = of_linen(name, lambda _: NORMAL).init(keys, X, *arguments)
    close(flax.linen.unbox(boxed), plain)
    specs = flax.linen.get_partition_spec(boxed)
    check_specs(name, specs)

    def run(variables: Any, x: jax.Array) -> Any:
        return module.apply(variables, x, *arguments, rngs={"dropout": jax.random.key(2)}, mutable=["batch_stats"])

    mesh = make_mesh(axis_type)
    with jax.set_mesh(mesh):
        x = placed(mesh, X, spec)
        y, updates = jax.jit(run)(placed(mesh, boxed, specs), x)
        check_division(name, y, x)
    close((y, updates), jax.jit(run)(plain, X), atol=3e-6)


@each_kind
def test_logical_names_of_linen_become_those_of_the_mesh(name: str) -> None:
    module = of_linen(name, lambda _: flax.linen.with_logical_partitioning(NORMAL, ("features",)))
    boxed = module.init(jax.random.key(0), X)
    specs = flax.linen.get_partition_spec(boxed)
    assert specs["params"] == {"scale": P("features"), "bias": P("features")}
    mesh, rules = make_mesh(), [("features", "model")]
    shardings = flax.linen.logical_to_mesh_sharding(specs, mesh, rules)
    assert shardings["params"]["scale"].spec == P("model")

    def run(variables: Any, x: jax.Array) -> Any:
        return module.apply(variables, x, mutable=["batch_stats"])

    with jax.set_mesh(mesh), flax.linen.logical_axis_rules(rules):
        got = jax.jit(run)(jax.device_put(boxed, shardings), placed(mesh, X, P("data", None, "model")))
    close(got, run(flax.linen.unbox(boxed), X), atol=3e-6)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("name", ["WeightNorm", "SpectralNorm"])
def test_a_partitioned_kernel_of_linen_is_normalized_as_any(name: str, axis_type: AxisType) -> None:
    """It keeps its metadata; the scale has Flax's name, and is found without the metadata too."""
    given = {"update_stats": True} if name == "SpectralNorm" else {}
    layers = (
        flax.linen.Dense(SIZE, kernel_init=init) for init in (NORMAL, flax.linen.with_partitioning(NORMAL, (None, "model")))
    )
    module, partitioned = (getattr(jaxnorm.linen, name)(layer) for layer in layers)
    plain, boxed = (norm.init(jax.random.key(0), X, **given) for norm in (module, partitioned))
    unboxed = flax.linen.unbox(boxed)
    close(jax.tree.leaves(unboxed), jax.tree.leaves(plain))
    assert (name == "WeightNorm") == ("layer_instance/kernel/value/scale" in boxed["params"])
    specs = flax.linen.get_partition_spec(boxed)
    assert specs["params"]["layer_instance"]["kernel"] == P(None, "model")

    def run(variables: Any, x: jax.Array) -> Any:
        def loss(params: Any) -> Any:
            y, updates = partitioned.apply({**variables, "params": params}, x, **given, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(y)), (y, updates)

        return jax.grad(loss, has_aux=True)(variables["params"])

    mesh = make_mesh(axis_type)
    with jax.set_mesh(mesh):
        got, others = jax.jit(run)(placed(mesh, boxed, specs), placed(mesh, X, P("data")))
    assert flax.linen.get_partition_spec(got) == specs["params"]
    close((flax.linen.unbox(got), others), run(unboxed, X), atol=1e-5)
    close(jax.tree.leaves(run(unboxed, X)), jax.tree.leaves(run(plain, X)), atol=1e-6)


def test_a_frozen_batch_norm_of_linen_takes_partitioned_parameters() -> None:
    trained = partitioned_in_linen("BatchNorm").init(jax.random.key(0), X)
    frozen = jaxnorm.linen.FrozenBatchNorm()
    close(frozen.apply(trained, X), frozen.apply(flax.linen.unbox(trained), X))


class Block(flax.linen.Module):
    """A norm with partitioned parameters as a layer of a network that is scanned."""

    name_of_norm: str

    @flax.linen.compact
    def __call__(self, x: jax.Array, _: None) -> Any:
        return partitioned_in_linen(self.name_of_norm)(x), None


@each_kind
def test_remat_of_linen_keeps_the_metadata(name: str) -> None:
    def run(block: Any) -> Any:
        variables = block.init(jax.random.key(0), X, None)

        def loss(params: Any) -> Any:
            (y, _), updates = block.apply({**variables, "params": params}, X, None, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(y)), updates

        return variables, *jax.jit(jax.grad(loss, has_aux=True))(variables["params"])

    (variables, gradient, updates), plain = run(flax.linen.remat(Block)(name)), run(Block(name))
    for tree in (variables["params"], gradient):
        check_specs(name, flax.linen.get_partition_spec(tree))
    close(flax.linen.unbox((variables, gradient, updates)), flax.linen.unbox(plain), atol=1e-5)


@each_kind
@pytest.mark.parametrize("wrap", [lambda block: block, flax.linen.remat], ids=["plain", "remat"])
def test_scan_of_linen_stacks_parameters_with_their_metadata(name: str, wrap: Callable[..., Any]) -> None:
    scanned = flax.linen.scan(
        wrap(Block),
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True},
        length=2,
        metadata_params={flax.linen.PARTITION_NAME: "layers"},
    )(name)
    boxed = scanned.init(jax.random.key(0), X, None)
    specs = flax.linen.get_partition_spec(boxed)
    check_specs(name, specs, stacked=("layers",))

    def run(variables: Any, x: jax.Array) -> Any:
        (y, _), updates = scanned.apply(variables, x, None, mutable=["batch_stats"])
        return y, updates

    mesh = make_mesh(names=("layers", "model"))
    with jax.set_mesh(mesh):
        got = jax.jit(run)(placed(mesh, boxed, specs), placed(mesh, X, P(None, None, "model")))
    wanted, layer = X, partitioned_in_linen(name)
    for i in range(2):
        variables = jax.tree.map(lambda a, i=i: a[i], flax.linen.unbox(boxed))
        own = {collection: tree[f"{name}_0"] for collection, tree in variables.items()}
        wanted, _ = layer.apply(own, wanted, mutable=["batch_stats"])
    close(got[0], wanted, atol=3e-6)
    close(got, run(flax.linen.unbox(boxed), X), atol=3e-6)


each_noisy = pytest.mark.parametrize("name", NOISY)
along_batch = pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])


@pytest.mark.slow
@along_batch
@each_noisy
def test_partitioned_dense_layers_with_noise_of_linen(name: str, axis_type: AxisType) -> None:
    def made(initializer: Callable[[str], Any]) -> Any:
        given = {f"{part}_init": initializer(part) for part in ("kernel", "bias")}
        return getattr(jaxnorm.linen, name)(features=SIZE, deterministic=True, **NOISY[name], **given)

    module = made(lambda part: flax.linen.with_partitioning(NORMAL, names_of(name, part)))
    boxed, plain = module.init(jax.random.key(0), X), made(lambda _: NORMAL).init(jax.random.key(0), X)
    close(flax.linen.unbox(boxed), plain)
    specs = flax.linen.get_partition_spec(boxed)
    check_specs(name, specs)
    mesh = make_mesh(axis_type)
    with jax.set_mesh(mesh):
        y = jax.jit(module.apply)(placed(mesh, boxed, specs), placed(mesh, X, P("data")))
    close(y, module.apply(plain, X), atol=3e-6)


@pytest.mark.slow
@along_batch
@each_noisy
def test_partitioned_dense_layers_with_noise_of_nnx(name: str, axis_type: AxisType) -> None:
    def made(initializer: Callable[[str], Any]) -> Any:
        given = {f"{part}_init": initializer(part) for part in ("kernel", "bias")}
        rngs = flax.nnx.Rngs(params=0, dropout=1)
        return getattr(jaxnorm.nnx, name)(SIZE, SIZE, *NOISY[name].values(), deterministic=True, **given, rngs=rngs)

    wanted, mesh = made(lambda _: NORMAL)(X), make_mesh(axis_type)
    with jax.set_mesh(mesh):
        layer = made(lambda part: flax.nnx.with_partitioning(NORMAL, names_of(name, part)))
        check_specs(name, specs_of(layer))
        y = flax.nnx.jit(lambda layer, x: layer(x))(layer, placed(mesh, X, P("data")))
    close(y, wanted, atol=3e-6)


# nnx


def of_nnx(name: str, initializer: Callable[[str], Any], rngs: flax.nnx.Rngs | None = None, **metadata: Any) -> Any:
    sizes: dict[str, tuple[Any, ...]] = {
        "CosineNorm": (SIZE, SIZE),
        "WeightNorm": (flax.nnx.Linear(SIZE, SIZE, rngs=flax.nnx.Rngs(3)),),
    }
    given = {f"{part}_init": initializer(part) for part in initialized(name)}
    rngs = flax.nnx.Rngs(params=0, dropout=1) if rngs is None else rngs
    return getattr(jaxnorm.nnx, name)(*sizes.get(name, (SIZE,)), **FIELDS.get(name, {}), **given, **metadata, rngs=rngs)


def partitioned_in_nnx(name: str, how: str = "initializers", rngs: flax.nnx.Rngs | None = None) -> Any:
    if how == "initializers":
        return of_nnx(name, lambda part: flax.nnx.with_partitioning(NORMAL, names_of(name, part)), rngs)
    metadata = {f"{part}_metadata": {"out_sharding": names_of(name, part)} for part in initialized(name)}
    return of_nnx(name, lambda _: NORMAL, rngs, **metadata)


def specs_of(norm: Any) -> Any:
    return flax.nnx.to_pure_dict(flax.nnx.get_partition_spec(flax.nnx.state(norm)))


def statistics(norm: Any) -> Any:
    return flax.nnx.to_pure_dict(flax.nnx.state(norm, flax.nnx.BatchStat))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("axis_type", "spec", "how"),
    [(*division, "initializers") for division in DIVIDED] + [(AxisType.Explicit, P("data"), "metadata")],
    ids=["auto", "explicit", "explicit-batch-metadata"],
)
@each_module
def test_partitioned_parameters_of_nnx(name: str, axis_type: AxisType, spec: P, how: str) -> None:
    if how == "metadata" and name in ("CosineNorm", "WeightNorm"):
        pytest.skip("takes initializers alone")
    run = flax.nnx.jit(lambda norm, x: norm(x, *ARGUMENTS.get(name, ())))
    plain = of_nnx(name, lambda _: NORMAL)
    wanted, mesh = run(plain, X), make_mesh(axis_type)
    with jax.set_mesh(mesh):
        norm, x = partitioned_in_nnx(name, how), placed(mesh, X, spec)
        check_specs(name, specs_of(norm))
        for part in initialized(name):
            if name != "WeightNorm":
                assert getattr(norm, part)[...].sharding.spec == P(*names_of(name, part))
        y = run(norm, x)
        check_division(name, y, x)
    close((y, statistics(norm)), (wanted, statistics(plain)), atol=3e-6)


@each_kind
def test_remat_of_nnx_keeps_the_metadata(name: str) -> None:
    def run(wrap: Callable[..., Any]) -> Any:
        norm = partitioned_in_nnx(name)
        call = wrap(lambda norm, x: norm(x))
        gradient = flax.nnx.grad(lambda norm: jnp.sum(jnp.sin(call(norm, X))))(norm)
        return norm, gradient

    with jax.set_mesh(make_mesh()):
        (norm, gradient), (plain, wanted) = run(flax.nnx.remat), run(lambda call: call)
    check_specs(name, specs_of(norm))
    check_specs(name, flax.nnx.to_pure_dict(flax.nnx.get_partition_spec(gradient)))
    close(*(flax.nnx.to_pure_dict(tree) for tree in (gradient, wanted)), atol=1e-5)
    close(statistics(norm), statistics(plain))


@each_kind
@pytest.mark.parametrize("wrap", [lambda call: call, flax.nnx.remat], ids=["plain", "remat"])
def test_scan_of_nnx_stacks_parameters_with_their_metadata(name: str, wrap: Callable[..., Any]) -> None:
    stacked = {flax.nnx.PARTITION_NAME: "layers"}

    @flax.nnx.split_rngs(splits=2)
    @flax.nnx.vmap(in_axes=0, out_axes=0, transform_metadata=stacked)
    def layers(rngs: flax.nnx.Rngs) -> Any:
        return partitioned_in_nnx(name, rngs=rngs)

    @flax.nnx.scan(in_axes=(flax.nnx.Carry, 0), out_axes=flax.nnx.Carry, transform_metadata=stacked)
    def run(x: jax.Array, norm: Any) -> jax.Array:
        return wrap(lambda norm, x: norm(x))(norm, x)

    mesh = make_mesh(names=("layers", "model"))
    with jax.set_mesh(mesh):
        norms = layers(flax.nnx.Rngs(0))
        graph, state = flax.nnx.split(norms)
        state = jax.tree.map(np.asarray, state)
        y = run(placed(mesh, X, P(None, None, "model")), norms)
        check_specs(name, specs_of(norms), stacked=("layers",))
    wanted = X
    for i in range(2):
        norm = flax.nnx.merge(graph, jax.tree.map(lambda a, i=i: jnp.asarray(a[i]), state))
        wanted = norm(wanted)
        close(jax.tree.map(lambda a, i=i: a[i], statistics(norms)), statistics(norm), atol=3e-6)
    close(y, wanted, atol=3e-6)
