"""`mlops stream`: a worker that answers the messages of a broker with a pipeline's champion.

Belongs here: what a person types and reads. Not here: the worker (`serving/stream.py`).
"""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from mlops_assets.cli.console import out
from mlops_assets.cli.data import PipelineName
from mlops_assets.home import ensure_home

EPILOG = """\
[bold]Brokers[/bold]: nats:// (JetStream), redis:// (Streams), kafka://, amqp:// (RabbitMQ). NATS and Redis are tested
against real servers; Kafka and RabbitMQ are built on the same interface and were not run.

[bold]A message[/bold] is JSON with `row` or `rows`, and with an `id` of its own if it has one; equal ids are taken for
the same message. In Redis it is the field `data` of an entry.

{"id": "a17", "row": {"sepal_length": 5.1, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2}}

{"row": {"file": "BASE64 OF A PNG"}} for a pipeline of images

[bold]Its answer[/bold] is {"id", "request_id", "pipeline", "version", "predictions": [{"label", "probabilities"}]}:
`request_id` is the message's id, `id` is made of that and the model's digest, so the same answer twice has the same id.
JetStream drops the second one within its duplicate window (`Nats-Msg-Id`), Redis never gets one; with Kafka and
RabbitMQ a reader must drop it.

[bold]A dead letter[/bold] is {"id", "request_id", "pipeline", "version", "reason", "field", "row", "original": BASE64}:
of a message that cannot be answered, or that has ended the worker three times.

Example: mlops stream iris --broker nats://localhost:4222 --from iris.rows --to iris.answers
"""


def stream(
    name: PipelineName,
    *,
    broker: Annotated[
        str,
        typer.Option(
            metavar="URL", envvar="MLOPS_BROKER", help="Of the broker; with a password, better in MLOPS_BROKER."
        ),
    ],
    source: Annotated[str, typer.Option("--from", metavar="SUBJECT", help="Subject, stream, topic or queue to read.")],
    to: Annotated[str, typer.Option(metavar="SUBJECT", help="Where answers go.")],
    dead: Annotated[str, typer.Option(metavar="SUBJECT", help="Where dead letters go; default: TO-dead.")] = "",
    batch: Annotated[int, typer.Option(min=1, max=10_000, help="The most messages in hand at a time.")] = 256,
    redeliver: Annotated[
        float, typer.Option(min=0.5, help="Seconds until a message goes to another worker that one has and died with.")
    ] = 30.0,
) -> None:
    """Answer the messages of a broker, at least once each; start as many workers as you like.

    A message is acknowledged when its answer is published. When the champion moves, the next messages are answered by
    the new one. Ctrl-C or SIGTERM ends the worker when the messages in hand are answered.

    Example: [bold]mlops stream iris --broker nats://localhost:4222 --from iris.rows --to iris.answers[/bold]
    """
    from mlops_assets.pipeline import pipeline_folders
    from mlops_assets.serving.registry import registry_of
    from mlops_assets.serving.slots import Slots
    from mlops_assets.serving.stream import Worker
    from mlops_assets.serving.stream_brokers import connection
    from mlops_assets.serving.stream_wire import Route
    from mlops_assets.serving.watcher import Watcher

    here = ensure_home()
    route = Route(name, source, to, dead or f"{to}-dead", batch, redeliver)
    wire = connection(broker, route, _tell)
    slots = Slots(here.home)
    # A worker follows the alias itself, so that it needs no model server beside it.
    watcher = Watcher(
        here.home, registry_of(here), lambda: [folder for folder in pipeline_folders() if folder.name == name]
    )

    def look() -> None:
        watcher.look()
        slots.refresh()

    look()
    asyncio.run(Worker(wire, slots, look, here.home / "stream" / route.group, _tell).run())


def _tell(line: str) -> None:
    out.print(line, markup=False, highlight=False)
