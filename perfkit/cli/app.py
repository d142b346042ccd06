"""The commands, registered."""

from typing import Annotated

import typer

from perfkit import __version__
from perfkit.cli.cache import cache
from perfkit.cli.compare import compare
from perfkit.cli.devices import devices
from perfkit.cli.doctor import doctor
from perfkit.cli.gate import gate
from perfkit.cli.io import io
from perfkit.cli.models import models
from perfkit.cli.report import report
from perfkit.cli.reproduce import reproduce
from perfkit.cli.roofline import roofline
from perfkit.cli.show import show

app = typer.Typer(
    name="perfkit",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(roofline)
app.command()(compare)
app.command()(show)
app.command()(report)
app.command()(gate)
app.command()(io)
app.command()(reproduce)
app.command()(cache)
app.command()(models)
app.command()(devices)
app.command()(doctor)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"perfkit {__version__}")
        raise typer.Exit


@app.callback()
def perfkit(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Where an op stands against mathematics and hardware.

    Runs attention kernels on the local GPU, reads hardware counters, and checks the result against the
    roofline and the analytic IO model. Without a GPU the same report is modelled, and says so.
    """
