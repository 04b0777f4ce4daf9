"""`steer-llm evidence`: look at a bundle that was kept."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from steer_llm_sdk.cli._inputs import MOST_BYTES, bytes_of, strict_json
from steer_llm_sdk.cli._show import console, shortfall, show_evidence
from steer_llm_sdk.cli.exits import Group, OneCommand, complain, errors_as_exits, flowing, refuse
from steer_llm_sdk.orchestration.models.evidence_bundle import EvidenceBundle
from steer_llm_sdk.orchestration.output import OrchestrationOutput

evidence = typer.Typer(cls=Group, no_args_is_help=True, help="Look at evidence that was kept.")


def show(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A bundle, or an output with one, as JSON; - is stdin.")],
    more: Annotated[str | None, typer.Argument(hidden=True, metavar="> PAGE")] = None,
    html: Annotated[bool, typer.Option("--html", help="A page that loads nothing, for a browser.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="As Markdown.")] = False,
) -> None:
    """Show what several answers agree on, and where they differ.

    steer-llm run -k 5 --json "..." > out.json; steer-llm evidence show out.json --html > out.html
    """
    with errors_as_exits():
        if more is not None:
            refuse("FILE", more, f"one file is read, and what is made of it is on stdout: leave it out, or > {more}")
        if html and markdown:
            refuse("--markdown", True, "give it or --html, not both")
        bundle = read_bundle(file)
        if html:
            _write(bundle.to_html())
        elif markdown:
            _write(bundle.to_markdown())
        else:
            show_evidence(bundle, console())
            for said in shortfall(bundle):
                complain(said)


evidence.command("show", cls=OneCommand, help=flowing(show.__doc__))(show)


def read_bundle(file: str) -> EvidenceBundle:
    raw = sys.stdin.buffer.read(MOST_BYTES) if file == "-" else bytes_of(file, "FILE")
    try:
        found = strict_json(raw)
    except ValueError as error:
        refuse("FILE", file, f"give a bundle, or an output with one, as JSON ({error})")
    try:
        bundle = _bundle_in(found)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        refuse("FILE", file, f"it is no evidence bundle: {where}: {first['msg']}")
    except TypeError:
        refuse("FILE", file, "it is no evidence bundle: what goes by that name is no object")
    if bundle is None:
        refuse("FILE", file, "there is no evidence bundle in it: run with -k 2 or more")
    return bundle


def _bundle_in(found: Any) -> EvidenceBundle | None:
    if isinstance(found, dict) and "content" in found:
        return OrchestrationOutput.model_validate(found).evidence
    if isinstance(found, dict) and "evidence_bundle" in found:
        found = found["evidence_bundle"]
    return EvidenceBundle.model_validate(found) if isinstance(found, dict) and "replicates" in found else None


def _write(text: str) -> None:
    sys.stdout.buffer.write(text.encode("utf-8", "replace"))
    sys.stdout.flush()
