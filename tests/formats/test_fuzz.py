"""A small share of the damaged files of fuzz.py; it tells how to run them all."""

from tests.formats.fuzz import fuzz


def test_damaged_files_end_in_one_sentence(tmp_path):
    outcome = fuzz(300, tmp_path, seed=1)
    assert outcome.files == 300
    # Damage that leaves a good file is well and good, as long as most does not.
    assert 0 < outcome.read < 150
