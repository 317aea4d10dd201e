"""A ResNet-18 from torch: what it gives, its statistics and its gradients in three training steps, and the way back."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from interop.resnets import BY_PASS, LinenResNet, NnxResNet, torch_resnet

from jaxnorm.interop import ModelReport, from_torch_model, to_torch_model
from jaxnorm.training import linen_apply, nnx_apply

STEPS, RATE = 3, 0.01
SMALL, FULL = (4, 5, 8, 64), (64, 1000, 6, 64)  # width, classes, batch, pixels: fewer pixels leave too few to norm in float32
TOLERANCE = {"float64": 1e-9, "float32": 1e-4}
State = dict[str, np.ndarray]


def arrays(network: Any) -> State:
    return {name: tensor.detach().numpy().copy() for name, tensor in network.state_dict().items()}


def torch_network(width: int, classes: int, dtype: str) -> Any:
    """Returns a network with random weights and statistics, as one has that was trained."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    network = torch_resnet(width, classes).to(getattr(torch, dtype))
    for name, tensor in network.state_dict().items():
        if "running_mean" in name:
            tensor.normal_(0, 0.3)
        elif "running_var" in name:
            tensor.uniform_(0.5, 2)
        elif name.endswith("weight") and tensor.ndim == 1:
            tensor.uniform_(0.5, 1.5)
        elif "bn" in name and name.endswith("bias"):
            tensor.normal_(0, 0.2)
    return network


def torch_steps(network: Any, x: np.ndarray, labels: np.ndarray) -> list[tuple[np.ndarray, State, State]]:
    """Trains; returns for each step the outputs in training, the gradients, and parameters and statistics after it."""
    torch = pytest.importorskip("torch")
    inputs, targets = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), torch.from_numpy(labels)
    network.train()
    found = []
    for _ in range(STEPS):
        network.zero_grad()
        outputs = network(inputs)
        torch.nn.functional.cross_entropy(outputs, targets).backward()
        gradients = {name: parameter.grad.numpy().copy() for name, parameter in network.named_parameters()}
        with torch.no_grad():
            for parameter in network.parameters():
                parameter -= RATE * parameter.grad
        found.append((outputs.detach().numpy().copy(), gradients, arrays(network)))
    return found


class Imported:
    """A network from torch's state_dict, with its training step and the way back."""

    def __init__(self, flax: str, state: State, width: int, classes: int, x: np.ndarray, dtype: str):
        self.names: Any = None
        self.report: ModelReport
        if flax == "linen":
            self.names = BY_PASS
            module = LinenResNet(width, classes, jnp.dtype(dtype))
            blank = jax.eval_shape(lambda key: module.init(key, x, train=False), jax.random.key(0))
            variables, self.report = from_torch_model(state, blank, names=self.names)
            apply, self.params, self.stats = linen_apply(module), variables["params"], variables["batch_stats"]
            self._model: Callable[[Any, Any], Any] = lambda params, stats: {"params": params, "batch_stats": stats}
        else:
            model, self.report = from_torch_model(state, nnx.eval_shape(lambda: NnxResNet(width, classes, jnp.dtype(dtype))))
            apply, self.params, self.stats = nnx_apply(model)

            def filled(params: Any, stats: Any) -> Any:
                nnx.update(model, params, stats)
                return model

            self._model = filled

        def loss(params: Any, stats: Any, labels: jax.Array) -> Any:
            outputs, new = apply(jax.random.key(0), params, stats, x, train=True)
            of_label = jax.nn.log_softmax(outputs)[jnp.arange(len(labels)), labels]
            return -of_label.mean(), (outputs, new)

        def step(params: Any, stats: Any, labels: jax.Array) -> Any:
            gradients, (outputs, stats) = jax.grad(loss, has_aux=True)(params, stats, labels)
            params = jax.tree.map(lambda p, g: p - RATE * g, params, gradients)
            return outputs, gradients, params, stats

        self.step = jax.jit(step)
        self.evaluate = jax.jit(lambda params, stats: apply(jax.random.key(0), params, stats, x, train=False)[0])

    def to_torch(self, params: Any, like: State) -> State:
        return to_torch_model(self._model(params, self.stats), like, names=self.names)


def worst(got: State, wanted: State) -> float:
    """The largest difference of an array, as a part of its largest number."""
    assert got.keys() >= wanted.keys()
    return max(float(np.abs(got[k] - v).max() / max(np.abs(v).max(), 1e-30)) for k, v in wanted.items())


@pytest.mark.parametrize(
    "flax, dtype, size",
    [
        ("linen", "float64", SMALL),
        pytest.param("linen", "float32", FULL, marks=pytest.mark.slow),
        pytest.param("nnx", "float64", FULL, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_three_training_steps_are_those_of_torch(flax: str, dtype: str, size: tuple[int, int, int, int]) -> None:
    torch = pytest.importorskip("torch")
    width, classes, batch, pixels = size
    random = np.random.default_rng(0)
    x = random.normal(size=(batch, pixels, pixels, 3)).astype(dtype)
    labels = random.integers(classes, size=batch)
    network = torch_network(width, classes, dtype)
    state = arrays(network)
    with jax.enable_x64(dtype == "float64"):
        net = Imported(flax, state, width, classes, x, dtype)
        assert {match.by for match in net.report.matches} == ({"names"} if flax == "linen" else {"equal names"})
        assert len(net.report.matches) == 102
        assert {why for _, why in net.report.left_out} == {"counters of batches"}
        network.eval()
        outputs = network(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).detach().numpy()
        errors = {"evaluation": worst({"y": np.asarray(net.evaluate(net.params, net.stats))}, {"y": outputs})}
        for step, (outputs, gradients, after) in enumerate(torch_steps(network, x, labels)):
            got, got_gradients, net.params, net.stats = net.step(net.params, net.stats, labels)
            statistics = {name: value for name, value in after.items() if "running" in name}
            back = net.to_torch(net.params, after)
            errors[f"outputs {step}"] = worst({"y": np.asarray(got)}, {"y": outputs})
            errors[f"gradients {step}"] = worst(net.to_torch(got_gradients, after), gradients)
            errors[f"statistics {step}"] = worst(back, statistics)
            errors[f"parameters {step}"] = worst(back, {name: after[name] for name in gradients})
        print(flax, dtype, size, {name: f"{error:.1e}" for name, error in errors.items()})
        assert max(errors.values()) < TOLERANCE[dtype], errors
        other = torch_network(width, classes, dtype)
        other.load_state_dict({name: torch.from_numpy(array) for name, array in back.items()}, strict=True)
        other.eval()
        outputs = other(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).detach().numpy()
        assert worst({"y": np.asarray(net.evaluate(net.params, net.stats))}, {"y": outputs}) < TOLERANCE[dtype]


def test_an_nnx_network_and_a_linen_one_hold_the_same_numbers_and_give_them_back_to_the_bit() -> None:
    pytest.importorskip("torch")
    state = arrays(torch_network(4, 5, "float32"))
    x = jnp.ones((1, 64, 64, 3))
    model, _ = from_torch_model(state, nnx.eval_shape(lambda: NnxResNet(4, 5)))
    module = LinenResNet(4, 5)
    blank = jax.eval_shape(lambda key: module.init(key, x, train=False), jax.random.key(0))
    variables, _ = from_torch_model(state, blank, names=BY_PASS)
    zeros = {name: np.zeros_like(array) for name, array in state.items()}
    for back in (to_torch_model(model, zeros), to_torch_model(variables, zeros, names=BY_PASS)):
        assert list(back) == list(state)
        for name, array in state.items():
            wanted = np.zeros_like(array) if "num_batches" in name else array
            assert back[name].dtype == array.dtype
            np.testing.assert_array_equal(back[name], wanted, err_msg=name)
