"""Handling of arguments and of errors by scripts."""

import subprocess
import sys
from pathlib import Path

import pytest

from ge3d_jax.cli.script import expand_home, refuse
from ge3d_jax.core.errors import UserError


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--out=~/pictures", "--out=/home/someone/pictures"),
        ("--out=~", "--out=/home/someone"),
        ("~/a.ply", "/home/someone/a.ply"),
        ("--out", "--out"),
        ("--out=a/~/b", "--out=a/~/b"),
        ("--out=./~", "--out=./~"),
        ("--prompt=~ a red mushroom", "--prompt=~ a red mushroom"),
        ("--prompt=~20 mushrooms / trees", "--prompt=~20 mushrooms / trees"),
        ("--out=~no-such-user/x", "--out=~no-such-user/x"),
        ("--lora=a=b.safetensors", "--lora=a=b.safetensors"),
    ],
)
def test_a_tilde_is_the_home_folder(monkeypatch, argument, expected):
    monkeypatch.setenv("HOME", "/home/someone")
    assert expand_home(argument) == expected


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        ("28, 'No space left on device', 'out/a.png'", 2, "look.py: out/a.png cannot be written (No space"),
        ("28, 'No space left on device'", 2, "look.py: A file cannot be written (No space"),
        ("32, 'Broken pipe'", 1, "BrokenPipeError"),
    ],
)
def test_a_disk_that_takes_no_more_gets_a_sentence(tmp_path, error, status, says):
    file = tmp_path / "look.py"
    file.write_text(
        f"from ge3d_jax.cli import script\ndef main():\n    raise OSError({error})\nscript.run(main)\n"
    )
    done = subprocess.run(
        [sys.executable, file],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "", "HOME": str(tmp_path)},
    )
    assert done.returncode == status and says in done.stderr
    assert (done.stderr.count("\n") == 1) == (status == 2)


def test_flags_that_would_be_ignored_are_named():
    refuse([], where="--cameras")
    with pytest.raises(UserError, match="^--a has no effect with --cameras; leave it out.$"):
        refuse(["a"], where="--cameras")
    with pytest.raises(UserError, match="^--a and --b have no effect with --cameras; leave them out.$"):
        refuse(["a", "b"], where="--cameras")


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("show --splats=a.ply --cameras=c.json --frames=3", "--frames has no effect with --cameras"),
        (
            "show --splats=a.ply --cameras=c.json --out=a.PNG --azimuth=3 --fov=9",
            "--azimuth and --fov have",
        ),
        ("show --splats=a.ply --cameras=c.json --fov=9", "c.json"),
        ("edit --prompt=a --image=b.png --azimuth=30", "--azimuth has no effect with --image"),
        ("edit --prompt=a --image=b.png --seed=1", "--seed has no effect with --method=ge3d"),
        ("edit --prompt=a --image=b.png --method=ddim --nodes=2", "--nodes has no effect with --method=ddim"),
    ],
)
def test_commands_refuse_what_they_would_ignore(command, says):
    done = subprocess.run(
        [sys.executable, "-c", "from ge3d_jax.cli.program import main; main()", *command.split()],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1
