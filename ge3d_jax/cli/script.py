"""Code shared by all scripts: flag parsing, one-line user errors, and the cache of compiled code.

Nothing heavy is imported here, so that `--help` and mistyped flags respond immediately.
"""

import errno
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import app, flags, logging

from ge3d_jax.core.caching import keep_compiled_code
from ge3d_jax.core.errors import UserError

# The run ended without the requested result; partial results were written.
EXIT_FAILED = 1
# The user has to act: correct the request, or make room on the disk.
EXIT_USER_ERROR = 2
# The exit status that a shell reports for a program ended by Ctrl-C.
EXIT_INTERRUPTED = 130
# What a disk says of files that cannot be written; other errors of the system are bugs.
_OF_THE_DISK = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG),
)
_HELP = ("--help", "-help", "-h")


def _fail(program: str, message: str) -> int:
    print(f"{program}: {message}", file=sys.stderr)
    return EXIT_USER_ERROR


def refuse(names: Sequence[str], *, where: str) -> None:
    """Refuse flags that would be ignored.

    Args:
        names: the flags that were given and would be ignored; there may be none.
        where: the flag beside which they have no effect, as written.

    Raises:
        UserError: there are such flags.
    """
    if names:
        told = " and ".join(f"--{name}" for name in names)
        has, them = ("has", "it") if len(names) == 1 else ("have", "them")
        raise UserError(f"{told} {has} no effect with {where}; leave {them} out.")


def expand_home(argument: str) -> str:
    """Expand a leading ~ or ~user in an argument's path to the home folder.

    A shell does this only at the beginning of an argument, so not in --out=~/pictures.
    """
    name, equals, value = argument.partition("=")
    if argument.startswith("-"):
        return f"{name}={_in_home(value)}" if equals else argument
    return _in_home(argument)


def _in_home(text: str) -> str:
    # A sentence may begin with ~, too.
    first = text.partition("/")[0]
    return os.path.expanduser(text) if first.startswith("~") and " " not in first else text


def _parse_flags(arguments: Sequence[str], names: Sequence[str], module: str) -> list[str]:
    program = arguments[0]
    if any(argument in _HELP for argument in arguments[1:]):
        # absl's own help names the started script rather than the module with the flags, and exits with 1.
        told = (sys.modules[module].__doc__ or "").rstrip()
        print(f"{told}\n{flags.FLAGS.module_help(sys.argv[0] if module == '__main__' else module)}")
        sys.exit(0)
    try:
        positional = flags.FLAGS([program, *map(expand_home, arguments[1:])])
    except flags.Error as error:
        sys.exit(_fail(program, f"{str(error).rstrip('.')}. See --help for the flags."))
    given = positional[1:]
    if len(given) < len(names):
        wanted = " ".join(names)
        sys.exit(_fail(program, f"{names[len(given)]} is missing; give {wanted}. See --help for the flags."))
    if len(given) > len(names):
        extra = given[len(names)]
        sys.exit(
            _fail(program, f"{extra!r} does not belong to a flag; put quotes around text of several words.")
        )
    return positional


def parse_settings(pairs: Sequence[str], *, iterations: int | None = None) -> dict[str, str]:
    """Split the values of `--set=name=value` flags.

    Args:
        pairs: the flag values.
        iterations: value of the separate --iterations flag, which takes precedence; None if not given.

    Raises:
        UserError: a value has no name or no "=".
    """
    settings = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name.strip() or not equals:
            raise UserError(
                f"--set={pair} has no name and value; write --set=name=value, e.g. --set=views=2."
            )
        settings[name.strip()] = value.strip()
    if iterations is not None:
        settings["iterations"] = str(iterations)
    return settings


def parse_counts(flag: str, values: Sequence[str]) -> list[int]:
    """Parse a flag that lists positive integers.

    Raises:
        UserError: a value is not a positive integer.
    """
    if not values or not all(value.strip().isdecimal() and int(value) > 0 for value in values):
        raise UserError(f"--{flag}={','.join(values)} must list whole numbers above 0, e.g. --{flag}=1,4.")
    return [int(value) for value in values]


def conclude(advice: Sequence[str], *, failed: bool, unwritten: Sequence[str] = ()) -> int:
    """Print a run's closing messages, to standard error if it failed, and return the exit status.

    Args:
        advice: sentences to print.
        failed: whether the run ended early.
        unwritten: sentences on what could not be written; these count as a user error, as with a full disk.
    """
    status = EXIT_USER_ERROR if unwritten else EXIT_FAILED if failed else 0
    for sentence in (*advice, *unwritten):
        print(sentence, file=sys.stderr if status else sys.stdout)
    return status


def run(
    main: Callable[..., int | None],
    *,
    positional: Sequence[str] = (),
    module: str = "__main__",
    program: str | None = None,
    arguments: Sequence[str] | None = None,
) -> None:
    """Parse the flags, run `main`, and exit with 2 on a user error, 130 on Ctrl-C, or the status from `main`.

    Args:
        main: the script, called with the positional arguments. Returns the exit status, or None for 0.
        positional: names of the positional arguments, all required.
        module: name of the module that defines the flags and whose docstring introduces them in --help.
        program: program name that prefixes messages; None means the script's file name.
        arguments: command-line arguments after the program name; None means those of the process.
    """
    program = Path(sys.argv[0]).name if program is None else program

    def show_warning(message: Warning | str, *_: object, **__: object) -> None:
        """Print a warning on one line without its source location, which is of no use to a script's user."""
        print(f"{program}: {message}", file=sys.stderr)

    def guarded(arguments: Sequence[str]) -> int:
        # JAX logs which accelerators it did not find, which is just noise on a machine without any.
        logging.set_verbosity(logging.WARNING)
        warnings.showwarning = show_warning
        from ge3d_jax.core.devices import use_processor_cores

        try:
            use_processor_cores()
            keep_compiled_code()
            return main(*arguments[1:]) or 0
        except UserError as error:
            return _fail(program, str(error))
        except OSError as error:
            if error.errno not in _OF_THE_DISK:
                raise
            file = error.filename or "A file"
            return _fail(
                program, f"{file} cannot be written ({error.strerror}); make room, or choose another."
            )
        except KeyboardInterrupt:
            print("Stopped; nothing more was written.", file=sys.stderr)
            return EXIT_INTERRUPTED

    app.run(
        guarded,
        argv=[program, *(sys.argv[1:] if arguments is None else arguments)],
        flags_parser=lambda given: _parse_flags(given, positional, module),
    )
