"""`mlops playground` and `mlops deploy`: a champion to try, here and in a Hugging Face Space.

Belongs here: what a person types and reads. Not here: the app (`deploy/space_app.py`), and the Space
(`deploy/space.py`).
"""

from __future__ import annotations

import os
from typing import Annotated, Literal

import typer

from mlops_assets.cli.console import out
from mlops_assets.cli.data import PipelineName
from mlops_assets.home import ensure_home
from mlops_assets.pipeline import find_pipeline


def playground(
    name: Annotated[
        str, typer.Argument(metavar="[PIPELINE]", help="One pipeline; default: all that the model server answers for.")
    ] = "",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of the web page.")] = 7860,
) -> None:
    """Try the champion in the browser: upload an image, or fill in a form; until Ctrl-C.

    It is for this machine alone unless MLOPS_HOST says otherwise.

    Without a pipeline, the champions that the model server of this home answers with, at /playground/.

    Example: [bold]mlops playground digits[/bold]
    """
    try:
        import gradio  # noqa: F401  so that its absence is told before the model is loaded
    except ImportError as error:
        from mlops_assets.deploy.space_app import PlaygroundError

        raise PlaygroundError(
            f"gradio is not installed ({error}); `pip install 'mlops-assets[space]'` brings it"
        ) from None
    here = ensure_home(dagster=False)
    if not name:
        from mlops_assets.deploy.playgrounds import PREFIX, serve_all

        out.print(f"all champions, at http://{here.host}:{port}{PREFIX}/; Ctrl-C ends it", markup=False)
        serve_all(here, port)
    from mlops_assets.deploy.space_app import serve
    from mlops_assets.serving.watcher import champion_slot

    os.environ["MLOPS_HOST"] = here.host
    slot = champion_slot(here, name)
    out.print(f"{name}, version {slot.version}, at http://{here.host}:{port}; Ctrl-C ends it", markup=False)
    serve(slot, port)


def deploy(
    name: PipelineName,
    *,
    target: Annotated[  # noqa: ARG001  there is one so far, and it is named so that another can come
        Literal["huggingface"], typer.Option(help="Where to: a Hugging Face Space.")
    ] = "huggingface",
    space: Annotated[
        str, typer.Option(metavar="OWNER/NAME", help="Which Space; default: `deployment: space:` in defs.yaml.")
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write the folder and say what would be done; needs no token, no network.")
    ] = False,
    private: Annotated[bool, typer.Option("--private", help="Make a private Space, if it is made now.")] = False,
) -> None:
    """Push the champion's playground to a Hugging Face Space, in one commit, with the token in HF_TOKEN.

    A Space that has the same files already is left alone.

    Example: [bold]mlops deploy digits --space me/digits[/bold], or first with [bold]--dry-run[/bold]
    """
    from mlops_assets.deploy.space import TOKEN, SpaceError, build, fresh, push
    from mlops_assets.serving.watcher import champion_slot

    here, pipeline = ensure_home(), find_pipeline(name)
    space = space or pipeline.spec.deployment.space
    token = os.environ.get(TOKEN, "")
    if not dry_run and not space:
        raise SpaceError(f"no Space is named; give --space OWNER/NAME, or set `deployment: space:` in {name}/defs.yaml")
    if not dry_run and not token:
        raise SpaceError(f"there is no token in {TOKEN}; set one with write access, or see by --dry-run what would go")
    slot = champion_slot(here, name)
    folder = here.home / "spaces" / name
    with fresh(folder) as made:
        files = build(slot, made, pipeline.spec.description)
    if dry_run:
        for path, size in files.items():
            out.print(f"{size:>12,}  {path}", markup=False, highlight=False)
        total = f"{len(files)} files, {sum(files.values()):,} bytes"
        out.print(
            f"{total}, in {folder}; without --dry-run, {space or 'the Space'} would get what it lacks of them in one "
            "commit",
            markup=False,
        )
        return
    pushed = push(folder, space, token, private=private)
    done = f"{pushed.files} files in one commit" if pushed.files else "nothing is new"
    out.print(f"{name}, version {slot.version}, in {space}: {done}; {pushed.url}", markup=False)
