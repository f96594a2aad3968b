"""A loaded model version: from raw rows to answers.

Belongs here: one version, its own features code and checks, and the proof at loading that it answers as it did in
training. Not here: which version that is (`slots.py`), and how requests come in. A slot never changes, so whoever holds
one gets answers of one version, whatever moves meanwhile.
"""

from __future__ import annotations

import itertools
import time
import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import polars as pl

from mlops_assets.errors import MlopsError
from mlops_assets.functions import FunctionError, call, forget, load_function
from mlops_assets.serving import CONTRACT, MODEL
from mlops_assets.serving.checks import Checks, InvalidInput
from mlops_assets.serving.contract import SOURCE, Contract
from mlops_assets.serving.features import FeaturesError, image_features, table_features
from mlops_assets.serving.images import decoded, from_records, in_shape
from mlops_assets.serving.pointer import Pointer, damage
from mlops_assets.training.predict import PredictError, Predictor

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pandera.polars import DataFrameSchema


Batch = Any
"""Valid raw rows: a `polars.DataFrame`, or images uint8 (rows, height, width, channels)."""

TOLERANCE: Final = 1e-3
"""How far a probability may be from the one in training; another build of ONNX Runtime is off by some 1e-6."""


_NUMBERS = itertools.count()


class SlotError(MlopsError):
    """A version that cannot answer."""


class Unservable(SlotError):
    """A version whose rows cannot be answered one by one, by what its contract says."""


class Answer(NamedTuple):
    """What a version says of rows.

    Attributes:
        labels: The most probable class of each row.
        probabilities: (rows, classes), in the order of the contract's classes.
    """

    labels: list[str]
    probabilities: NDArray[np.float32]


class Slot:
    """One version, loaded and tested.

    Attributes:
        pipeline: Its pipeline.
        version: Its number in MLflow's registry.
        run_id: Its training run.
        model_digest: What names the model by content.
        contract: What it takes and gives.
        serving: The pipeline's options for serving.
        accuracy: Estimate and interval at 95 % on the test rows, where they are known.
        row_seconds: What answering one row took when it was loaded.
        accelerated: Whether it runs on a GPU.
        folder: Its files.
        package: The name under which its code is imported.
    """

    def __init__(self, folder: Path, pointer: Pointer, contract: Contract, *, threads: int) -> None:
        self.pipeline, self.version, self.run_id = pointer.pipeline, pointer.version, pointer.run_id
        self.model_digest, self.serving, self.folder = pointer.model_digest, pointer.serving, folder
        told = pointer.accuracy
        self.accuracy = (told.estimate, told.lower, told.upper) if told else None
        self.contract = contract
        # Of this slot alone: another of the same version may come while this one answers, and go after it.
        self.package = f"mlops_served_{pointer.key}_{next(_NUMBERS)}"
        weakref.finalize(self, forget, self.package).atexit = False
        self.row_seconds = 0.0
        self._classes = np.array(contract.classes, dtype=object)
        self._columns = [one.name for one in contract.inputs]
        self._absent = [pl.Series(one.name, [None], one.polars_type) for one in contract.inputs if not one.required]
        try:
            self._features = self._function("features")
            self._checks = Checks(contract, self._schema, self.serving.log.leave_out)
            self._predictor = Predictor(folder / MODEL, threads=threads, gpu=True)
        except (FunctionError, PredictError) as error:
            raise SlotError(f"version {self.version} of {self.pipeline} cannot be loaded: {error}") from error
        self.accelerated = self._predictor.accelerated

    @classmethod
    def load(cls, folder: Path, pointer: Pointer, *, threads: int = 1) -> Slot:
        """Load a version, and let it answer its sample rows as it did in training.

        Args:
            folder: Its unpacked files.
            pointer: Which version they are of.
            threads: CPU threads of a pass.

        Raises:
            Unservable: Its contract says that it cannot answer single rows.
            SlotError: It cannot be loaded, or it answers otherwise.
        """
        if problem := damage(folder, pointer.key):
            raise SlotError(f"{problem}; delete {folder}, and `mlops serve` makes it again at its start")
        contract = Contract.read((folder / CONTRACT).read_bytes(), str(folder / CONTRACT))
        if contract.unservable:
            raise Unservable(f"version {pointer.version} of {pointer.pipeline} cannot be served: {contract.unservable}")
        slot = cls(folder, pointer, contract, threads=threads)
        slot._prove()
        return slot

    @property
    def exposed(self) -> list[str]:
        """Columns that were left out after the training: the sample rows still have their values."""
        columns = {one.name for one in self.contract.inputs}
        return [one for one in self.serving.log.leave_out if one in columns and one not in self.contract.hidden]

    @property
    def public(self) -> Contract:
        """The contract as anybody may see it: without the sample's values of exposed columns."""
        if not self.exposed:
            return self.contract
        hidden = dict.fromkeys(self.exposed)
        return self.contract.model_copy(update={"sample": tuple({**row, **hidden} for row in self.contract.sample)})

    def require_shareable(self) -> None:
        """Refuse to let sample rows out that have what is to be left out.

        Raises:
            SlotError: They were taken before it was.
        """
        if self.exposed:
            names = ", ".join(self.exposed)
            raise SlotError(
                f"the sample rows of version {self.version} of {self.pipeline} have values of {names}, which is left "
                f"out by now; `mlops run {self.pipeline}` makes a version without, for `mlops promote`"
            )

    def from_records(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Rows as JSON has them: by column name, or for images `{"pixels": [[...]]}` or `{"file": BASE64}`.

        Raises:
            InvalidInput: Names field and row.
        """
        if self.contract.kind == "table":
            return self._checks.from_records(rows)
        return self.from_pixels(from_records(rows, self.contract))

    def from_columns(self, columns: Mapping[str, Any]) -> Batch:
        """Tensors or lists by the name of the column; for images one, `input`.

        Raises:
            InvalidInput: Names field and row.
        """
        if self.contract.kind == "table":
            return self._checks.from_columns(columns)
        if unknown := sorted(set(columns) - {"input"}):
            raise InvalidInput(f"there is no tensor '{unknown[0]}'; images come as `input`", field=unknown[0])
        if "input" not in columns:
            raise InvalidInput("tensor 'input' is missing; images come as `input`", field="input")
        return self.from_pixels(columns["input"])

    def from_frame(self, frame: pl.DataFrame) -> pl.DataFrame:
        """A table as it was read from a file: text is cast, columns that no model needs are left out.

        Raises:
            InvalidInput: Names field and row.
        """
        return self._checks.from_frame(frame)

    def from_pixels(self, pixels: Any) -> NDArray[np.uint8]:
        """Images of the shape that the version was trained with, (rows, height, width, channels).

        Raises:
            InvalidInput: They are of another shape or type, or the schema refuses one.
        """
        images = in_shape(pixels, self.contract.image_shape)
        if self.contract.inputs:
            height, width = images.shape[1:3]
            sums = images.reshape(len(images), -1).sum(axis=1, dtype=np.uint64)
            told = {
                "height": np.full(len(images), height, np.int32),
                "width": np.full(len(images), width, np.int32),
                "mean": (sums / images[0].size).astype(np.float32),
            }
            self._checks.require_arrays(told)
        return images

    def from_files(self, files: Sequence[bytes]) -> NDArray[np.uint8]:
        """Images from their encoded files.

        Raises:
            InvalidInput: One cannot be decoded, is of another size, or the schema refuses it.
        """
        if self.contract.kind == "table":
            raise InvalidInput(f"{self.pipeline} takes rows of a table, not images; send its columns")
        return self.from_pixels(decoded(files, self.contract))

    def features(self, batch: Batch) -> NDArray[np.float32 | np.uint8]:
        """What the model takes of valid raw rows, (rows, *shape), by the version's own code.

        Raises:
            InvalidInput: The features function cannot make it of these rows.
        """
        try:
            if self.contract.kind == "images":
                return image_features(partial(call, self._features), batch, self.contract.shape)
            return self._table_features(batch)
        except FeaturesError as error:
            raise InvalidInput(f"the features of these rows cannot be computed: {error}") from error
        except FunctionError as error:
            if self.serving.log.leave_out:  # an error of somebody's code may tell a value
                kind = type(error.__cause__).__name__
                raise InvalidInput(f"the features function fails on these rows ({kind})") from None
            raise InvalidInput(f"the features of these rows cannot be computed: {error}") from error

    def probabilities(self, x: NDArray[np.float32 | np.uint8]) -> NDArray[np.float32]:
        """The classes' probabilities for what the model takes.

        Raises:
            InvalidInput: The model's answer is not finite.
        """
        try:
            return self._predictor(x)
        except PredictError as error:
            raise InvalidInput(str(error)) from error

    def answer(self, batch: Batch) -> Answer:
        """Answer valid raw rows.

        Raises:
            InvalidInput: As `features` and `probabilities`.
        """
        return self.labelled(self.probabilities(self.features(batch)))

    def labelled(self, probabilities: NDArray[np.float32]) -> Answer:
        """Probabilities with the most probable classes."""
        return Answer(self._classes[probabilities.argmax(axis=1)].tolist(), probabilities)

    def _table_features(self, frame: pl.DataFrame) -> NDArray[np.float32]:
        contract = self.contract
        if absent := [one for one in self._absent if one.name not in frame.columns]:
            # As rows beside others that have the column: an answer does not depend on who else asks.
            frame = frame.hstack([one.new_from_index(0, frame.height) for one in absent])
        x = table_features(
            partial(call, self._features),
            frame,
            columns=self._columns,
            key=contract.key,
            key_type=contract.key_type,
            target=contract.target,
            features=contract.features,
        )
        finite = np.isfinite(x)
        if not finite.all():
            row, column = (int(one) for one in np.argwhere(~finite)[0])
            name = contract.features[column]
            raise InvalidInput(f"row {row}: feature '{name}' is {x[row, column]}, not a finite number", row=row)
        return x

    def _function(self, kind: str) -> Any:
        return load_function(self.contract.functions[kind], self.folder / SOURCE / self.contract.pipeline, self.package)

    def _schema(self) -> DataFrameSchema:
        schema: DataFrameSchema = call(self._function("schema"))
        return schema

    def _prove(self) -> None:
        """Answer the sample rows, twice: the first pass of a session is slow, and the second tells how long one takes.

        Raises:
            SlotError: It answers otherwise than in training.
        """
        batch, wanted = self.contract.sample_rows(), np.array(self.contract.answers, dtype=np.float32)
        said = f"version {self.version} of {self.pipeline} answers otherwise than in training"
        try:
            self.answer(batch)
            began = time.perf_counter()
            given = self.answer(batch).probabilities
            self.row_seconds = (time.perf_counter() - began) / len(wanted)
        except InvalidInput as error:
            raise SlotError(f"{said}: {error}") from error
        if given.shape != wanted.shape or not np.allclose(given, wanted, rtol=0, atol=TOLERANCE):
            raise SlotError(f"{said}; compare the packages that are installed here with those of its training run")
