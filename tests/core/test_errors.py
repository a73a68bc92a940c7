"""Values and errors quoted in messages: on one line and of limited length."""

import pytest

from ge3d_jax.core.errors import reason, shown


def test_values_are_shown_as_python_writes_them():
    assert shown("a\nb") == r"'a\nb'" and shown([1, None]) == "[1, None]"


def test_long_values_are_cut():
    assert shown("x" * 78) == repr("x" * 78)
    assert shown("x" * 79) == "'" + "x" * 79 + "…"
    assert len(shown(list(range(10**5)))) == 81


def test_values_that_cannot_be_written_are_named_by_their_type():
    nested = []
    for _ in range(200_000):
        nested = [nested]
    assert shown(nested) == "a list"
    assert shown(10**5000) == "a int"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError("no room\n  at\tall "), "no room at all"),
        (KeyError(), "KeyError"),
        (ValueError(" \n"), "ValueError"),
        (ValueError("x" * 200), "x" * 200),
        (ValueError("x" * 201), "x" * 200 + "…"),
    ],
)
def test_reasons_are_one_line_of_limited_length(error, text):
    assert reason(error) == text
