"""What every script shares: flags read politely, a user's mistake told in one line, compiled code kept.

Nothing heavy is imported here, so that `--help` and a mistyped flag answer at once.
"""

import importlib
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from absl import app, flags, logging

from ge3d_jax.core.caching import keep_compiled_code
from ge3d_jax.core.errors import UserError

EXIT_USER_ERROR = 2
# What a shell reports for a program ended by Ctrl-C.
EXIT_INTERRUPTED = 130


def _fail(message: str) -> int:
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
    return EXIT_USER_ERROR


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """In one line, without the place in the code: it is for the person who runs the script."""
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)


def _parse_flags(arguments: Sequence[str], names: Sequence[str]) -> list[str]:
    try:
        positional = flags.FLAGS(list(arguments))
    except flags.Error as error:
        sys.exit(_fail(f"{str(error).rstrip('.')}. See --help for the flags."))
    given = positional[1:]
    if len(given) < len(names):
        sys.exit(_fail(f"{names[len(given)]} is missing; give {' '.join(names)}. See --help for the flags."))
    if len(given) > len(names):
        extra = given[len(names)]
        sys.exit(
            _fail(f"{extra!r} belongs to no flag; put quotes around a prompt or a name of several words.")
        )
    return positional


def parse_settings(pairs: Sequence[str]) -> dict[str, str]:
    """Split the values of `--set=name=value` flags. Raises UserError at one without a name or a '='."""
    settings = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name.strip() or not equals:
            raise UserError(f"--set={pair} has no name and value; write --set=name=value, as --set=views=2.")
        settings[name.strip()] = value.strip()
    return settings


def parse_counts(flag: str, values: Sequence[str]) -> list[int]:
    """Whole numbers above 0 from a flag that lists them. Raises UserError at anything else."""
    if not values or not all(value.strip().isdecimal() and int(value) > 0 for value in values):
        raise UserError(f"--{flag}={','.join(values)} must list whole numbers above 0, as --{flag}=1,4.")
    return [int(value) for value in values]


def load_extra(module: str, *, flag: str, requirements: str, otherwise: str = "") -> Any:
    """A module that needs packages beyond the project's own, for the flag that asks for it.

    requirements: the file that lists them. otherwise: what else can be done than to install them from it.
    Raises: UserError where one is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"--{flag} lacks the package {error.name}; run pip install -r {requirements}{otherwise}."
        ) from None


def run(main: Callable[..., None], *, positional: Sequence[str] = ()) -> None:
    """Parse the flags, run `main`, and exit: 0 done, 2 a user's mistake, told in one line, 130 Ctrl-C.

    positional: names of what stands on the command line without a flag, all needed; `main` is given each.
    """

    def guarded(arguments: Sequence[str]) -> int:
        # JAX tells which accelerators it did not find; on a machine without any that is no news.
        logging.set_verbosity(logging.WARNING)
        warnings.showwarning = _show_warning
        from ge3d_jax.core.devices import use_processor_cores

        try:
            use_processor_cores()
            keep_compiled_code()
            main(*arguments[1:])
        except UserError as error:
            return _fail(str(error))
        except KeyboardInterrupt:
            print("Stopped; nothing more was written.", file=sys.stderr)
            return EXIT_INTERRUPTED
        return 0

    app.run(guarded, flags_parser=lambda arguments: _parse_flags(arguments, positional))
