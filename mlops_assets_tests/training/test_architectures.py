import torch

from mlops_assets.training.architectures import MLP, Standardize
from mlops_assets_tests.training.problems import iris_rows


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
    assert [layer.out_features for layer in one.layers if isinstance(layer, torch.nn.Linear)] == [8, 5, 3]


def test_no_hidden_layer_is_a_linear_model() -> None:
    assert sum(value.numel() for value in MLP(4, 3, hidden=()).parameters()) == 4 * 3 + 3
