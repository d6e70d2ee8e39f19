"""``sctl``: reads the command line, runs one command, and turns every failure into one line.

The only place that prints errors and decides the exit code. It imports nothing heavy.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence

from supervisord import __version__

from . import lazily
from .errors import CliError, Exit


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and answers its exit code: 0, 1 for an error, 130 for an interrupt, or
    the container's own code."""
    if argv is None:
        lazily.begin()
        gc.disable()  # what is loaded stays: looking for rubbish in it takes a tenth of the start
    from .arguments import build

    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        args = build().parse_args(arguments)
        if args.show_version:
            sys.stdout.write(f"sctl {__version__}\n")
            return 0
        gc.enable()
        args.run(args)
        sys.stdout.flush()
    except Exit as exit:
        return exit.code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output went away: nothing more to say, and no complaint at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if debug:
            raise
        sys.stderr.write(f"sctl: {_describe(error)}\n")
        return 1
    return 0


def _describe(error: Exception) -> str:
    """One line for any error."""
    if isinstance(error, CliError):
        return str(error)
    # An RPC error can only exist where grpc was imported.
    grpc = sys.modules.get("grpc")
    if grpc is not None and isinstance(error, grpc.RpcError):
        from .errors import rpc_text

        return rpc_text(error, "the daemon")
    if isinstance(error, OSError) and error.strerror:
        name = f"{error.filename}: " if error.filename else ""
        return f"{name}{error.strerror.lower()}"
    return f"unexpected {type(error).__name__}: {' '.join(str(error).split())} (try --debug)"


def entry() -> None:
    """For ``python -m``."""
    sys.exit(main())


if __name__ == "__main__":
    entry()
