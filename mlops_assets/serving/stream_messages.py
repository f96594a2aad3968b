"""Messages of a stream: what comes in, what goes out, and how a slot answers many of them in one pass.

Belongs here: the JSON of messages, answers and dead letters, and their ids. Not here: brokers (`stream_brokers.py`),
and when a message is acknowledged (`stream.py`).

A message is a JSON object with `row` or `rows`, as the model server takes them in JSON: values by column name, or for
images `{"file": BASE64}` or `{"pixels": [[...]]}`; and with an `id`, if it has one of its own.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson

from mlops_assets.errors import MlopsError
from mlops_assets.serving.checks import InvalidInput

if TYPE_CHECKING:
    from mlops_assets.serving.slot import Answer, Slot

LONGEST_ID: Final = 256
MOST_ROWS: Final = 10_000
"""In one pass through the model; a message with more is refused, as a request with more is."""


class BadMessage(MlopsError):
    """A message that can never be answered.

    Attributes:
        field: The part of the message that is wrong; empty for all of it.
    """

    def __init__(self, sentence: str, field: str = "") -> None:
        super().__init__(sentence)
        self.field = field


@dataclass(frozen=True)
class Incoming:
    """A message as a broker delivered it.

    Attributes:
        place: What the broker calls it; its id where it gives none itself.
        body: Its bytes.
        redelivered: Whether a worker had it before and did not acknowledge it.
        raw: The broker's own object, for the acknowledgement.
    """

    place: str
    body: bytes
    redelivered: bool
    raw: Any


@dataclass(frozen=True)
class Outgoing:
    """An answer, or a dead letter.

    Attributes:
        id: The same whenever the same message is answered by the same model.
        body: JSON.
        dead: Whether it is a dead letter.
    """

    id: str
    body: bytes
    dead: bool


@dataclass(frozen=True)
class _Question:
    message: Incoming
    id: str
    rows: Sequence[Any]


def respond(slot: Slot, messages: Sequence[Incoming]) -> list[Outgoing]:
    """Answer messages with one version, in as few passes as can be; what cannot be answered becomes a dead letter.

    Returns:
        One for each message, in their order.
    """
    done: dict[int, Outgoing] = {}
    questions: dict[int, _Question] = {}
    for index, message in enumerate(messages):
        try:
            questions[index] = _read(message)
        except BadMessage as error:
            done[index] = dead_letter(message, slot, str(error), error.field)
    done.update(zip(questions, _answers(slot, list(questions.values())), strict=True))
    return [done[index] for index in range(len(messages))]


def dead_letter(message: Incoming, slot: Slot, reason: str, field: str = "", row: int | None = None) -> Outgoing:
    """What is published of a message that cannot be answered: the sentence, and the bytes as they came."""
    given = _given_id(message)
    body = {
        "id": _digest("dead", given),
        "request_id": given,
        "pipeline": slot.pipeline,
        "version": slot.version,
        "reason": reason,
        "field": field,
        "row": row,
        "original": base64.b64encode(message.body).decode(),
    }
    return Outgoing(_digest("dead", given), orjson.dumps(body), dead=True)


def _answers(slot: Slot, questions: Sequence[_Question]) -> list[Outgoing]:
    """Answer all together; where that fails, each half alone, so that one bad message costs a few passes."""
    if not questions:
        return []
    rows = [row for question in questions for row in question.rows]
    if len(questions) == 1 or len(rows) <= MOST_ROWS:
        try:
            return _outgoing(slot, questions, slot.answer(slot.from_records(rows)))
        except InvalidInput as error:
            if len(questions) == 1:
                return [dead_letter(questions[0].message, slot, str(error), error.field, error.row)]
        except Exception as error:  # noqa: BLE001  the pipeline's features code may raise anything, each time again
            if len(questions) == 1:
                reason = f"the model of {slot.pipeline} failed on this message: {type(error).__name__}: {error}"
                return [dead_letter(questions[0].message, slot, reason)]
    middle = len(questions) // 2
    return _answers(slot, questions[:middle]) + _answers(slot, questions[middle:])


def _outgoing(slot: Slot, questions: Sequence[_Question], answer: Answer) -> list[Outgoing]:
    made, start = [], 0
    for question in questions:
        end = start + len(question.rows)
        predictions = [
            {"label": label, "probabilities": dict(zip(slot.contract.classes, probabilities.tolist(), strict=True))}
            for label, probabilities in zip(answer.labels[start:end], answer.probabilities[start:end], strict=True)
        ]
        name = _digest(slot.model_digest, question.id)
        body = {
            "id": name,
            "request_id": question.id,
            "pipeline": slot.pipeline,
            "version": slot.version,
            "predictions": predictions,
        }
        made.append(Outgoing(name, orjson.dumps(body), dead=False))
        start = end
    return made


def _read(message: Incoming) -> _Question:
    """Read a message's JSON.

    Raises:
        BadMessage: It is none, or has no rows.
    """
    try:
        said = orjson.loads(message.body)
    except orjson.JSONDecodeError as error:
        raise BadMessage(f"the message is not JSON ({error})") from None
    if not isinstance(said, dict) or ("row" in said) == ("rows" in said):
        raise BadMessage("the message must be a JSON object with either 'row' or 'rows'", "row")
    if "id" in said and not _is_id(said["id"]):
        raise BadMessage(f"'id' must be a whole number or a text of 1 to {LONGEST_ID} characters", "id")
    rows = [said["row"]] if "row" in said else said["rows"]
    if not isinstance(rows, list) or not 0 < len(rows) <= MOST_ROWS:
        raise BadMessage(f"'rows' must be a list of 1 to {MOST_ROWS:,}", "rows")
    return _Question(message, _given_id(message), rows)


def _given_id(message: Incoming) -> str:
    """The id that the message gives itself, or its place where it gives none that can be used."""
    try:
        said = orjson.loads(message.body)
    except orjson.JSONDecodeError:
        return message.place
    return str(said["id"]) if isinstance(said, dict) and _is_id(said.get("id")) else message.place


def _is_id(value: Any) -> bool:
    return (isinstance(value, int) and not isinstance(value, bool)) or (
        isinstance(value, str) and 0 < len(value) <= LONGEST_ID
    )


def _digest(*parts: str) -> str:
    """32 hex digits: ids go into headers, where not every character may stand."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]
