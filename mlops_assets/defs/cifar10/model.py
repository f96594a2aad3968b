"""The networks that can be trained: `parameters: {network: ...}` in `defs.yaml` chooses one."""

from torch import nn

from mlops_assets.training.architectures import AlexNet, ResNet9

NETWORKS = {"alexnet": AlexNet, "resnet9": ResNet9}


def model(shape: tuple[int, int, int], n_classes: int, network: str = "alexnet", **options: int) -> nn.Module:
    """AlexNet for 32 x 32 pixels, or a small residual network that is better with fewer parameters.

    Args:
        shape: Height, width and channels of an image.
        n_classes: How many classes there are.
        network: `alexnet` or `resnet9`.
        options: What the network takes besides, such as `width: 16` of `resnet9`.
    """
    return NETWORKS[network](shape, n_classes, **options)
