"""The program `ge3d`: its list of commands, each equivalent to a script in experiments/."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ge3d_jax.cli.commands import COMMANDS

ROOT = Path(__file__).parents[2]
PROGRAM = "import sys; from ge3d_jax.cli.program import main; sys.exit(main())"
# Run in a separate process that reports at its end whether JAX was imported.
WATCHED = "import atexit, sys; atexit.register(lambda: print('jax' in sys.modules)); " + PROGRAM


def run(*arguments):
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120, cwd=ROOT, check=False
    )


def test_its_help_lists_the_commands_without_jax():
    done = run("-c", WATCHED, "--help")
    *told, has_jax = done.stdout.splitlines()
    assert (done.returncode, has_jax) == (0, "False")
    listed = dict(re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in told if line.startswith("  "))
    assert listed == COMMANDS
    assert run("-c", PROGRAM).stdout.splitlines() == told


def test_an_unknown_command_gets_a_sentence():
    done = run("-c", WATCHED, "genrate", "--prompt=a red mushroom")
    assert (done.returncode, done.stdout) == (2, "False\n")
    assert done.stderr == "ge3d: there is no command 'genrate' (did you mean generate?); --help lists all.\n"
    assert "did you mean" not in run("-c", PROGRAM, "--prompt=x").stderr


@pytest.mark.parametrize(("command", "script"), [("generate", "generate"), ("check-model", "check_model")])
def test_the_help_of_a_command_is_that_of_its_script(command, script):
    done = run("-c", WATCHED, command, "--help")
    told, has_jax = done.stdout.removesuffix("\n").rsplit("\n", 1)
    assert (done.returncode, has_jax, done.stderr) == (0, "False", "")
    # Its own flags, and those shared with other commands.
    assert f"ge3d {command} --" in told and "  --model:" in told
    assert ("  --prompt:" in told) == (command == "generate")
    assert run(f"experiments/{script}.py", "--help").stdout == told + "\n"


def test_a_wrong_flag_is_named_with_the_command():
    done = run("-c", WATCHED, "generate", "--promt=a red mushroom")
    assert (done.returncode, done.stdout) == (2, "False\n")
    assert done.stderr.startswith("ge3d generate: Unknown command line flag 'promt'")
    assert run("-c", PROGRAM, "convert", "a.ply").stderr == (
        "ge3d convert: TARGET is missing; give SOURCE TARGET. See --help for the flags.\n"
    )


def test_a_command_does_what_its_script_does(tmp_path):
    done = run("-c", PROGRAM, "convert", str(tmp_path / "none.ply"), str(tmp_path / "b.spz"))
    script = run("experiments/convert_splats.py", str(tmp_path / "none.ply"), str(tmp_path / "b.spz"))
    assert done.returncode == script.returncode == 2
    assert done.stderr.removeprefix("ge3d convert: ") == script.stderr.removeprefix("convert_splats.py: ")
    assert "none.ply" in done.stderr


def test_each_command_has_a_module_and_one_script():
    scripts = [path.read_text(encoding="utf-8") for path in (ROOT / "experiments").glob("*.py")]
    for name in COMMANDS:
        assert importlib.util.find_spec(f"ge3d_jax.cli.commands.{name.replace('-', '_')}") is not None
        assert sum(f'run_command("{name}")' in text for text in scripts) == 1
    modules = {path.stem for path in (ROOT / "ge3d_jax/cli/commands").glob("[!_]*.py")}
    assert modules == {name.replace("-", "_") for name in COMMANDS}
