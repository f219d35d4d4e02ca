"""Say whether this installation, or a model, can work, what is missing, and the command that mends it."""

import json
from typing import Annotated

import typer

__all__ = ["command"]


def command(
    model: Annotated[
        str | None,
        typer.Argument(help="A folder, a hub id or smollm2: probe whether its layers follow segments."),
    ] = None,
    length: Annotated[
        int | None, typer.Option(help="Tokens of the probe. Default: longer than the model's window, at most 2048.")
    ] = None,
    implementation: Annotated[
        str | None, typer.Option("--attn_implementation", help="sdpa, eager or flex_attention.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the hub.")] = 3.0,
) -> None:
    """Check this installation: versions, machine, model, and what is missing. With a MODEL, probe that model.

    The exit code is 0 when the package (or the model, all of it or its attention layers) can be used, and 1 otherwise.

    Example:  segattn doctor

    Example:  segattn doctor smollm2
    """
    if model is not None:
        from segattn.cli.model_check import check_model

        found = check_model(model, length, implementation)
        print(json.dumps(found.to_dict(), indent=2) if as_json else "\n".join(found.lines()))
        raise typer.Exit(1 if found.status == "refused" else 0)
    from segattn.cli.checks import run_checks
    from segattn.pretrained.environment import environment

    facts, checks = environment(), run_checks(timeout)
    usable = not any(check.state == "broken" for check in checks)
    if as_json:
        content = {"usable": usable, "environment": facts, "checks": [check.to_dict() for check in checks]}
        print(json.dumps(content, indent=2))
    else:
        width = max(map(len, facts))
        for name, value in facts.items():
            print(f"{name:{width}}  {value}")
        print()
        for check in checks:
            print(f"[{check.state:^6}] {check.name}: {check.found}")
            if check.mend:
                print(f"         -> {check.mend}")
        print("\nReady to use." if usable else "\nNot usable yet: see the lines marked [broken].")
    raise typer.Exit(0 if usable else 1)
