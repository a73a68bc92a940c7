"""Handling of arguments by scripts."""

import pytest

from ge3d_jax.cli.script import expand_home


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
