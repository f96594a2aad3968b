"""The networks that can be trained: `parameters: {network: ...}` in `defs.yaml` chooses one."""

from torch import nn

from mlops_assets.training.architectures import AlexNet, ResNet9

NETWORKS = {"alexnet": AlexNet, "resnet9": ResNet9}


def model(shape: tuple[int, int, int], n_classes: int, network: str = "resnet9") -> nn.Module:
    """AlexNet for 32 x 32 pixels, or a small residual network that is better with fewer parameters."""
    return NETWORKS[network](shape, n_classes)
