"""The same work with layers of PyTorch, as it is done there: eagerly, with autograd."""

import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnorm.benchmarks._layer import TorchLayer
from jaxnorm.benchmarks._measure import Program


def forward_and_backward(layer: TorchLayer, x: jax.Array, cotangent: jax.Array) -> Program:
    """Returns the layer and its gradient for x and all parameters."""
    torch = importlib.import_module("torch")
    module = layer.module.to(torch_device())
    tensor, of_y = to_torch(x, layer).requires_grad_(), to_torch(cotangent, layer)
    inputs = (*module.parameters(), tensor)

    def run() -> Any:
        y = module(tensor)
        *params, dx = torch.autograd.grad(y, inputs, of_y)
        return y.detach(), (params, dx)

    nbytes, keeps_input = _residuals(module, tensor)
    return Program(run, wait, {"residual_bytes": nbytes, "residual_input": keeps_input})


def forward(layer: TorchLayer, x: jax.Array) -> Program:
    """Returns the layer alone."""
    torch = importlib.import_module("torch")
    module = layer.module.to(torch_device())
    tensor = to_torch(x, layer)

    def run() -> Any:
        with torch.no_grad():
            return module(tensor)

    return Program(run, wait, {})


def training_step(network: TorchLayer, x: jax.Array, labels: jax.Array, learning_rate: float, momentum: float) -> Program:
    """Returns a step of stochastic gradient descent with momentum."""
    torch = importlib.import_module("torch")
    module = network.module.to(torch_device(), memory_format=_memory_format(network))
    images, classes = to_torch(x, network), torch.tensor(np.asarray(labels, np.int64), device=torch_device())
    optimizer = torch.optim.SGD(module.parameters(), lr=learning_rate, momentum=momentum)

    def run() -> Any:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(module(images), classes)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Program(run, wait, {})


def torch_device() -> str:
    """Returns the device that stands for jax's.

    Raises:
      RuntimeError: if torch cannot use it.
    """
    if jax.default_backend() == "cpu":
        return "cpu"
    if not importlib.import_module("torch").cuda.is_available():
        raise RuntimeError("this torch finds no CUDA device")
    return "cuda"


def to_torch(x: jax.Array, layer: TorchLayer) -> Any:
    """Returns a tensor with x's last axis on axis 1, which lies in memory as the layer wants it."""
    torch = importlib.import_module("torch")
    values = np.moveaxis(np.asarray(x.astype(jnp.float32)), -1, 1)
    tensor = torch.tensor(values, dtype=getattr(torch, x.dtype.name), device=torch_device())
    return tensor.contiguous(memory_format=_memory_format(layer))


def wait(_: Any) -> None:
    """Waits for a GPU; on a CPU nothing is left to wait for."""
    if torch_device() == "cuda":
        importlib.import_module("torch").cuda.synchronize()


def _memory_format(layer: TorchLayer) -> Any:
    torch = importlib.import_module("torch")
    return torch.channels_last if layer.channels_last else torch.contiguous_format


def _residuals(module: Any, x: Any) -> tuple[int, bool]:
    """Returns the bytes of what autograd keeps besides x and the parameters, and whether it keeps x."""
    torch = importlib.import_module("torch")
    kept = {}

    def keep(tensor: Any) -> Any:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = module(x)
    keeps_input = kept.pop(x.data_ptr(), None) is not None
    # Buffers, as running statistics, are there anyway, like the parameters.
    there = {tensor.data_ptr() for tensor in (*module.parameters(), *module.buffers())}
    nbytes = sum(size for pointer, size in kept.items() if pointer not in there)
    del y
    return nbytes, keeps_input
