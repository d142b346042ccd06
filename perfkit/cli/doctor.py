"""`perfkit doctor`: is this machine ready to measure, and if not, what to do."""

import typer


def doctor() -> None:
    """Check what this machine can do, with a fix for each finding.

    Exits with 3 only when something that perfkit cannot work without is missing.
    """
    from rich.console import Console

    from perfkit.measure.abilities import abilities
    from perfkit.measure.doctor import exit_code, findings
    from perfkit.measure.machine import snapshot
    from perfkit.reports.doctor import render

    machine = snapshot()
    found = findings(machine)
    Console().print(render(found, abilities(machine, found)))
    raise typer.Exit(exit_code(found))
