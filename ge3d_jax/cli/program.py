"""The `ge3d` program; its commands live in `ge3d_jax.cli.commands`, and experiments/ has a script for each.

Only the requested command is imported, because several commands define flags of the same name.
"""

import difflib
import importlib
import inspect
import sys
from collections.abc import Sequence

from ge3d_jax.cli import script
from ge3d_jax.cli.commands import COMMANDS

_PROGRAM = "ge3d"


def run_command(name: str, *, program: str | None = None, arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit, as `script.run` does.

    Args:
        name: a key of `COMMANDS`.
        program, arguments: see `script.run`.
    """
    module = importlib.import_module(f"ge3d_jax.cli.commands.{name.replace('-', '_')}")
    positional = [parameter.upper() for parameter in inspect.signature(module.main).parameters]
    script.run(
        module.main, positional=positional, module=module.__name__, program=program, arguments=arguments
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command named by the first argument.

    Args:
        arguments: command-line arguments after the program name; None means those of the process.

    Returns:
        The exit status if no command was run.
    """
    name, *rest = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    if name in ("--help", "-h", "help"):
        print(_help())
        return 0
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        meant = f" (did you mean {close[0]}?)" if close else ""
        print(f"{_PROGRAM}: there is no command {name!r}{meant}; --help lists all.", file=sys.stderr)
        return script.EXIT_USER_ERROR
    run_command(name, program=f"{_PROGRAM} {name}", arguments=rest)
    raise AssertionError("a command exits by itself")


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "Text-to-3D with Gaussian splats.",
            "",
            *lines,
            "",
            f"{_PROGRAM} COMMAND --help lists a command's flags.",
        ]
    )
