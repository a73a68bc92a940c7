"""A small sample of the damaged inputs of `python -m tests.fuzz_readers`; see there for complete runs."""

import pytest

from tests.fuzz_readers.attempts import fuzz
from tests.fuzz_readers.readers import READERS

COUNTS = {
    "transforms": 300,
    "camera_path": 200,
    "picture": 300,
    "run": 60,
    "list": 60,
    "cloud": 300,
    "mesh": 100,
    "model": 25,
    "tokenizer": 30,
    "lora": 300,
    "embedding": 200,
    "flax": 200,
    "torch": 300,
    "clip": 40,
    "point_e": 30,
}


def test_every_reader_is_tried_here_but_one():
    """The exception is single files, whose weights take ten seconds to make."""
    assert READERS.keys() - COUNTS.keys() == {"single_file"}


@pytest.mark.parametrize("reader", COUNTS)
def test_damaged_inputs_end_in_one_sentence(tmp_path, reader):
    outcome = fuzz(READERS[reader], COUNTS[reader], tmp_path, seed=3)
    assert not outcome.faults, "\n".join(outcome.examples)
    # Some damage leaves a valid input, but most must not.
    assert outcome.files == COUNTS[reader] and outcome.read < 0.6 * outcome.files
