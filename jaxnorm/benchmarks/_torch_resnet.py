"""The ResNet of the benchmark in PyTorch."""

import importlib
from collections.abc import Callable
from typing import Any

CLASSES = 10
STAGES = ((16, 1), (32, 2), (64, 2))  # the width of a bottleneck, and the stride of the first
BLOCKS = 2  # of a stage


def torch_resnet(norm_relu: Callable[[int], Any]) -> Any:
    """Returns a module, a ResNet of 20 layers with bottlenecks, for images of 3 channels.

    Args:
      norm_relu: returns a module, a norm of so many channels and a ReLU.
    """
    nn = importlib.import_module("torch").nn

    def conv(inputs: int, features: int, size: int, stride: int = 1) -> Any:
        return nn.Conv2d(inputs, features, size, stride, padding=size // 2, bias=False)

    class Block(nn.Module):
        """Three convolutions and their shortcut, which is a convolution where the shape changes."""

        def __init__(self, inputs: int, width: int, stride: int):
            super().__init__()
            self.before = norm_relu(inputs)
            self.inner = nn.Sequential(
                conv(inputs, width, 1),
                norm_relu(width),
                conv(width, width, 3, stride),
                norm_relu(width),
                conv(width, 4 * width, 1),
            )
            self.shortcut = None if inputs == 4 * width and stride == 1 else conv(inputs, 4 * width, 1, stride)

        def forward(self, x: Any) -> Any:
            y = self.before(x)
            return (x if self.shortcut is None else self.shortcut(y)) + self.inner(y)

    features = STAGES[0][0]
    parts = [conv(3, features, 3)]
    for width, first_stride in STAGES:
        for block in range(BLOCKS):
            parts.append(Block(features, width, 1 if block else first_stride))
            features = 4 * width
    head = (norm_relu(features), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, CLASSES, bias=False))
    return nn.Sequential(*parts, *head)
