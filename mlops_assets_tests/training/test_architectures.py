import numpy as np
import pytest
import torch
from torch import nn

from mlops_assets.training.architectures import MLP, AlexNet, Pixels, ResNet9, SmallCNN, Standardize
from mlops_assets_tests.training.problems import iris_rows


def images(n: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8))


def test_adapted_features_have_mean_zero_and_deviation_one() -> None:
    x = torch.tensor(iris_rows()[0].x)
    layer = Standardize(4)
    assert torch.equal(layer(x), x)
    layer.adapt(x)
    torch.testing.assert_close(layer(x).mean(dim=0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(layer(x).std(dim=0, correction=0), torch.ones(4), atol=1e-5, rtol=0)


def test_a_constant_column_is_centred_and_stays_finite() -> None:
    x = torch.tensor([[0.1, 1.0], [0.1, 3.0], [0.1, 5.0]])
    layer = Standardize(2)
    layer.adapt(x)
    assert layer.std[0] == 1
    assert torch.equal(layer(x)[:, 0], torch.zeros(3))


def test_large_offsets_do_not_swallow_the_spread() -> None:
    x = torch.tensor([[1e6], [1e6 + 1], [1e6 + 2]])
    layer = Standardize(1)
    layer.adapt(x)
    torch.testing.assert_close(layer.std, torch.tensor([(2 / 3) ** 0.5]))


def test_the_scale_travels_with_the_weights() -> None:
    x = torch.tensor(iris_rows()[0].x)
    one, other = MLP(4, 3, hidden=(8, 5), dropout=0.5), MLP(4, 3, hidden=(8, 5), dropout=0.5)
    one.layers[0].adapt(x)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.eval()(x), other.eval()(x))
    assert one(x).shape == (120, 3)
    assert [layer.out_features for layer in one.layers if isinstance(layer, nn.Linear)] == [8, 5, 3]


def test_no_hidden_layer_is_a_linear_model() -> None:
    assert sum(value.numel() for value in MLP(4, 3, hidden=()).parameters()) == 4 * 3 + 3


def test_pixels_come_out_with_mean_zero_and_deviation_one_per_channel_as_channels_last() -> None:
    x = images(2500, 3, 4, 2) // torch.tensor([1, 5], dtype=torch.uint8)
    layer = Pixels(2)
    layer.adapt(x)
    plain = x.numpy().reshape(-1, 2).astype(np.float64)
    np.testing.assert_allclose(layer.mean, plain.mean(axis=0), rtol=1e-7)
    np.testing.assert_allclose(layer.std, plain.std(axis=0), rtol=1e-7)
    out = layer(x)
    assert (out.shape, out.dtype) == ((2500, 2, 3, 4), torch.float32)
    assert out.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(out[7, 1, 2, 3], (x[7, 2, 3, 1] - plain[:, 1].mean()) / plain[:, 1].std(), rtol=1e-5)


def test_the_scale_of_pixels_depends_on_neither_order_nor_threads_nor_memory() -> None:
    x = images(1500, 5, 4, 3)
    threads = torch.get_num_threads()
    found = []
    for variant, number in ((x, 1), (x.flip(0), 2), (x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1), 2)):
        torch.set_num_threads(number)
        layer = Pixels(3)
        layer.adapt(variant)
        found.append(torch.stack([layer.mean, layer.std]))
    torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_channel_of_one_value_is_centred_and_stays_finite() -> None:
    x = torch.full((4, 2, 2, 1), 200, dtype=torch.uint8)
    layer = Pixels(1)
    layer.adapt(x)
    assert layer.std.item() == 1
    assert torch.equal(layer(x), torch.zeros(4, 1, 2, 2))


def test_pixels_are_not_rounded_in_mixed_precision() -> None:
    x = images(4, 2, 2, 3)
    layer = Pixels(3)
    layer.adapt(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x), layer(x.clone()))
        assert layer(x).dtype == torch.float32


@pytest.mark.parametrize("x", [images(2, 4, 4), images(2, 4, 4, 1).float()])
def test_what_is_no_image_is_refused_when_the_scale_is_fitted(x: torch.Tensor) -> None:
    with pytest.raises(TypeError, match="Pixels takes uint8"):
        Pixels(1).adapt(x)


def parameters(module: nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (SmallCNN, (8, 8, 1)),
        (SmallCNN, (28, 28, 1)),
        (SmallCNN, (5, 1, 3)),
        (AlexNet, (32, 32, 3)),
        (AlexNet, (28, 30, 1)),
        (ResNet9, (32, 32, 3)),
        (ResNet9, (9, 8, 1)),
    ],
)
def test_networks_give_logits_for_images_of_a_shape(network: type[nn.Module], shape: tuple[int, int, int]) -> None:
    module = network(shape, 7)
    x = images(3, *shape)
    assert module(x).shape == (3, 7)
    module.eval()
    torch.testing.assert_close(module(x)[:1], module(x[:1]), rtol=1e-4, atol=1e-4)


def test_networks_have_the_size_that_they_are_said_to_have() -> None:
    shape = (32, 32, 3)
    assert 7.4e6 < parameters(AlexNet(shape, 10)) < 7.6e6
    assert 1.6e6 < parameters(ResNet9(shape, 10)) < 1.7e6
    assert parameters(ResNet9(shape, 10, width=16)) < parameters(ResNet9(shape, 10)) / 3
    one = SmallCNN((8, 8, 1), 10, channels=(4,), dropout=0.4)
    assert parameters(one) == 4 * 9 + 2 * 4 + 4 * 4 * 4 * 10 + 10
    assert [each.p for each in one.modules() if isinstance(each, nn.Dropout)] == [0.4]
