"""`python -m ssd_kernels`: search launch configurations, see how fast a model's states decay, export the package."""

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console

from ssd_kernels import decays, export, tune

COMMANDS = {"tune": tune, "decays": decays, "export": export}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m ssd_kernels", description=(__doc__ or "").partition(": ")[2],
        epilog="What a call of an operator launches, and why, is said in Python: ssd_kernels.explain(operator, ...).",
    )  # fmt: skip
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        summary, _, rest = (module.__doc__ or "").partition("\n\n")
        command = commands.add_parser(
            name, help=summary, description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    args = parser.parse_args(argv)
    try:
        args.run(args, Console())
    except (ValueError, TypeError, OSError, NotImplementedError, RuntimeError) as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
