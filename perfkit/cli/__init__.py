"""The command line: one thin module per command, and the one place where errors are caught."""

import os
import sys

from perfkit.errors import PerfkitError


def main() -> None:
    """Run `perfkit`. An expected error is one message, one hint and its exit code, never a traceback."""
    try:
        from perfkit.cli.app import app
    except ModuleNotFoundError as error:
        print(f"error: {error.name} is not installed, and the command line needs it", file=sys.stderr)
        print("hint:  in a checkout of perfkit: pip install -e .", file=sys.stderr)
        sys.exit(3)
    try:
        app(prog_name="perfkit")
    except PerfkitError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint:  {error.hint}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of a pipe has gone (`| head`): nothing is wrong here, and the exit must not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
