"""The playground of one version: a form or an image, and the most probable classes.

Belongs here: the Gradio app, the same on this machine (`mlops playground`) and in a Hugging Face Space, where a copy of
this file and of the modules that it imports lies beside the model. Not here: making and pushing that folder
(`space.py`). It therefore imports nothing that answering does not need.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mlops_assets.errors import MlopsError
from mlops_assets.serving.checks import InvalidInput
from mlops_assets.serving.pointer import POINTER, read_pointer
from mlops_assets.serving.slot import Slot

if TYPE_CHECKING:
    import gradio as gr
    import numpy as np
    from numpy.typing import NDArray

    from mlops_assets.serving.contract import Input

MOST_CLASSES: Final = 10
UNKNOWN: Final = "unknown"
"""What a person chooses for a value that may be null."""

_INTEGERS: Final = ("Int", "UInt")
_TEXTS: Final = ("String", "Categorical", "Date", "Datetime", "Time")
_SAID: Final = {
    "in_range": "{min_value} to {max_value}",
    "greater_than": "more than {min_value}",
    "greater_than_or_equal_to": "at least {min_value}",
    "less_than": "less than {max_value}",
    "less_than_or_equal_to": "at most {max_value}",
    "str_matches": "like {pattern}",
}


class PlaygroundError(MlopsError):
    """The playground cannot be opened."""


def main(folder: Path) -> None:
    """Serve the version in a folder until it is ended: what a Space runs.

    Raises:
        MlopsError: The folder does not hold a version, or that one cannot answer here.
    """
    pointer = read_pointer(folder / POINTER)
    if pointer is None:
        raise PlaygroundError(f"{folder} has no {POINTER}; build it by `mlops deploy`")
    serve(Slot.load(folder, pointer))


def serve(slot: Slot, port: int | None = None) -> None:
    """Serve a version's playground until Ctrl-C, on this machine alone unless MLOPS_HOST says otherwise.

    Args:
        slot: The version.
        port: Of the web page; Gradio's own choice without.

    Raises:
        PlaygroundError: The port is taken.
    """
    # Before Gradio is imported: it reads them then.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    # A Space's own web server reaches the app from outside its container.
    host = os.environ.get("MLOPS_HOST") or ("0.0.0.0" if "SPACE_ID" in os.environ else "127.0.0.1")  # noqa: S104
    with examples_folder() as examples:
        app = playground(slot, examples)
        try:
            app.launch(
                server_name=host,
                server_port=port,
                share=False,
                ssr_mode=False,
                quiet=True,
                footer_links=["api"],
                max_file_size="16mb",
            )
        except OSError as error:
            raise PlaygroundError(f"{host} cannot be listened on ({error}); choose another port") from None


@contextmanager
def examples_folder() -> Iterator[Path]:
    """An empty folder below the temporary one that goes with this process, also where SIGTERM ends it."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="mlops-playground-") as folder:
        yield Path(folder)


def playground(slot: Slot, examples: Path) -> gr.Blocks:
    """The app of a version.

    Args:
        slot: The version.
        examples: An empty folder below the temporary one, for example images.
    """
    import gradio as gr

    title = f"{slot.pipeline}, version {slot.version}"
    app: gr.Blocks
    with gr.Blocks(title=f"{title}: {measured(slot)}", analytics_enabled=False) as app:
        gr.Markdown(f"# {title}\n\n{measured(slot)}")

        def classify(*values: Any) -> dict[str, float]:
            try:
                return _classify(slot, values)
            except InvalidInput as error:
                raise gr.Error(str(error), title="This cannot be answered", print_exception=False) from None

        with gr.Row():
            with gr.Column():
                given = _image(slot, gr) if slot.contract.kind == "images" else _form(slot, gr)
                ask = gr.Button("Classify", variant="primary")
            answer = gr.Label(num_top_classes=MOST_CLASSES, label="classes")
        gr.Examples(
            _examples(slot, examples),
            given,
            answer,
            classify,
            cache_examples=False,
            run_on_click=True,
            api_visibility="private",
        )
        ask.click(classify, given, answer, api_name="classify")
        if slot.contract.kind == "table":  # the form begins with an example
            app.load(classify, given, answer, api_visibility="private")
    return app


def measured(slot: Slot) -> str:
    """What is known of a version's accuracy, for people."""
    if slot.accuracy is None:
        return "Its accuracy is not known."
    estimate, lower, upper = (f"{100 * one:.1f}" for one in slot.accuracy)
    return f"Right on {estimate} % of the test rows (95 % interval: {lower} to {upper} %)."


def asked(slot: Slot) -> list[Input]:
    """The columns of the form: those that the model needs."""
    return [one for one in slot.contract.inputs if one.required]


def _form(slot: Slot, gr: Any) -> list[Any]:
    """One field for each column, with what its checks allow; it begins with the first example."""
    fields: list[Any] = []
    for one, value in zip(asked(slot), _rows(slot)[0], strict=True):
        said: dict[str, Any] = {"value": value, "label": one.name, "info": _said(one) or None}
        if choices := _choices(one):
            fields.append(gr.Dropdown(choices, **said))
        elif one.dtype == "Boolean":
            fields.append(gr.Checkbox(**said))
        elif one.dtype.startswith((*_INTEGERS, "Float")):
            fields.append(gr.Number(precision=0 if one.dtype.startswith(_INTEGERS) else None, **said))
        else:
            fields.append(gr.Textbox(**said))
    return fields


def _image(slot: Slot, gr: Any) -> list[Any]:
    height, width, channels = slot.contract.image_shape
    said = f"an image, {width} x {height} pixels, {'grey' if channels == 1 else 'in colour'}"
    return [gr.Image(type="filepath", sources=["upload", "clipboard"], label=said, height=320)]


def _choices(one: Input) -> list[Any]:
    """The values that a column may have, if they are listed."""
    listed: list[Any] = list(one.categories)
    if one.dtype == "Boolean" and one.nullable:
        listed = [True, False]
    for check in one.checks:
        if check.name == "isin":
            listed = list(check.statistics["allowed_values"])
    return [*listed, UNKNOWN] if listed and one.nullable else listed


def _said(one: Input) -> str:
    """What the checks of a column allow, and its type where a field does not show it."""
    said = [_SAID[check.name].format(**check.statistics) for check in one.checks if check.name in _SAID]
    if one.dtype in {"Date", "Datetime", "Time"}:
        said.append(f"a {one.dtype.lower()}, as ISO 8601 has it")
    return ", ".join([*said, *(["may be empty"] if one.nullable else [])])


def _rows(slot: Slot) -> list[list[Any]]:
    """The contract's sample, as the fields of a form take it."""
    return [[_shown(one, row.get(one.name)) for one in asked(slot)] for row in slot.contract.sample]


def _shown(one: Input, value: Any) -> Any:
    choices = _choices(one)
    if choices:
        # None, or what stands for a value that must not leave the data
        return value if value in choices else choices[-1]
    return "" if value is None and one.dtype in _TEXTS else value


def _examples(slot: Slot, folder: Path) -> list[list[Any]]:
    """The contract's sample, as rows of a form or as files of images."""
    if slot.contract.kind == "table":
        return _rows(slot)
    made = []
    for number, pixels in enumerate(slot.contract.sample_rows()):
        path = folder / f"{number}.png"
        _picture(pixels).save(path)
        made.append([str(path)])
    return made


def _picture(pixels: NDArray[np.uint8]) -> Any:
    from PIL import Image

    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _classify(slot: Slot, values: tuple[Any, ...]) -> dict[str, float]:
    """The probability of each class for what the fields hold.

    Raises:
        InvalidInput: The version does not answer that.
    """
    if slot.contract.kind == "images":
        (path,) = values
        if path is None:
            raise InvalidInput("there is no image; upload one, or click on an example")
        batch = slot.from_files([_fitting(slot, Path(path).read_bytes())])
    else:
        batch = slot.from_records([_row(slot, values)])
    answer = slot.answer(batch)
    return dict(zip(slot.contract.classes, answer.probabilities[0].tolist(), strict=True))


def _row(slot: Slot, values: tuple[Any, ...]) -> Mapping[str, Any]:
    """A row as JSON has it; a field that was left empty is null where that is allowed."""
    row = {}
    for one, value in zip(asked(slot), values, strict=True):
        empty = value == (UNKNOWN if _choices(one) else "")
        row[one.name] = None if empty and one.nullable else value
    return row


def _fitting(slot: Slot, file: bytes) -> bytes:
    """An image file of the size that the version takes: what people upload seldom has it, and they are told."""
    import gradio as gr
    from PIL import Image

    assert slot.contract.images is not None
    height, width, _ = slot.contract.image_shape
    try:
        with Image.open(io.BytesIO(file)) as image:
            if slot.contract.images.size is not None or image.size == (width, height):
                return file
            fitted = io.BytesIO()
            image.convert(slot.contract.images.mode).resize((width, height)).save(fitted, "png")
            gr.Info(f"made {width} x {height} pixels of {image.width} x {image.height}")
            return fitted.getvalue()
    except (OSError, ValueError, Image.DecompressionBombError):
        return file  # the version's own reader says what is wrong with it
