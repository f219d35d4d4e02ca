"""Say whether this installation can work, what is missing, and the command that mends it."""

import json
from typing import Annotated

import typer

__all__ = ["command"]


def command(
    as_json: Annotated[bool, typer.Option("--json", help="Print the checks and the environment as JSON.")] = False,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the hub.")] = 3.0,
) -> None:
    """Check this installation: versions, machine, model, and what is missing.

    The exit code is 0 when the package can be used, 1 when something that it needs is missing.

    Example:  segattn doctor
    """
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
