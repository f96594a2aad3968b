from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mlops_assets.training.predict import PredictError, pass_rows, predict

ROWS = np.array([[1, 2, 3], [1000, 0, -1000], [0, 0, 0]], dtype=np.float32)


def scaled(factor: float) -> bytes:
    """A model whose logits are its three features times a factor."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "factor"], ["y"])],
        "scaled",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "classes"])],
        [helper.make_tensor("factor", TensorProto.FLOAT, [], [factor])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def test_probabilities_are_the_softmax_and_do_not_overflow() -> None:
    found = predict(scaled(1), ROWS)
    assert found.dtype == np.float32
    weights = np.exp([1.0, 2.0, 3.0])
    np.testing.assert_allclose(found, [weights / weights.sum(), [1, 0, 0], [1 / 3] * 3], rtol=1e-6)


def test_a_file_and_its_bytes_are_the_same_model(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(scaled(2))
    assert np.array_equal(predict(tmp_path / "m.onnx", ROWS), predict(scaled(2), ROWS))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 1000])
def test_batches_are_put_together_in_order(batch_size: int) -> None:
    assert np.array_equal(predict(scaled(2), ROWS, batch_size=batch_size, threads=2), predict(scaled(2), ROWS))


def test_no_rows_give_no_probabilities_of_the_right_width() -> None:
    found = predict(scaled(1), ROWS[:0])
    assert (found.shape, found.dtype) == ((0, 3), np.float32)


@pytest.mark.parametrize("x", [ROWS[:, :2], ROWS.astype(np.float64), ROWS[0]])
def test_rows_that_do_not_fit_are_refused(x: np.ndarray) -> None:
    with pytest.raises(PredictError, match="does not take rows of"):
        predict(scaled(1), x)


def test_an_answer_that_is_not_finite_is_named() -> None:
    with pytest.raises(PredictError, match="answer to row 2 is not finite"):
        predict(scaled(3e38), ROWS[[2, 0, 1]])


def test_what_is_no_model_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.onnx").write_bytes(b"nothing")
    for model, name in (
        (tmp_path / "m.onnx", "m.onnx"),
        (tmp_path / "none.onnx", "none.onnx"),
        (b"nothing", "7 bytes"),
    ):
        with pytest.raises(PredictError, match=name):
            predict(model, ROWS)
    assert capfd.readouterr() == ("", "")


def test_large_rows_go_through_in_small_passes() -> None:
    assert [pass_rows(shape) for shape in ((4,), (1024,), (32, 32, 3), (10_000, 1000, 3))] == [1024, 1024, 341, 1]
