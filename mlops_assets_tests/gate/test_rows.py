import numpy as np
import pytest

from mlops_assets.errors import MlopsError
from mlops_assets.gate.rows import Outputs, Paired


@pytest.mark.parametrize(
    ("label", "new", "old", "said"),
    [
        ([], [], None, "no test rows"),
        ([0, 1], [0], None, "2 labels, 1 new model's predictions"),
        ([0, 1], [0, 1], [0, 1, 1], "3 champion's predictions"),
        ([0, 1], [0.0, np.nan], None, "missing among the new model's predictions"),
        (np.array(["a", None], object), ["a", "b"], None, "missing among the labels"),
        ([0, 1], ["0", "1"], None, "labels are numbers, new model's predictions are text"),
        ([0, 1], [[0.2, 0.8], [0.5, 0.5]], None, "shape (2, 2)"),
        ([0, 1], np.array([b"0", b"1"]), None, "neither numbers nor text"),
    ],
)
def test_what_cannot_be_paired_is_refused(label, new, old, said):
    with pytest.raises(MlopsError) as caught:
        Paired(np.asarray(label), Outputs(np.asarray(new)), None if old is None else Outputs(np.asarray(old)))

    assert said in str(caught.value)
