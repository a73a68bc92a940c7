"""A small sample of the damaged files of fuzz.py; see there for complete runs."""

from tests.formats.fuzz import fuzz


def test_damaged_files_end_in_one_sentence(tmp_path):
    outcome = fuzz(300, tmp_path, seed=1)
    assert outcome.files == 300
    # Some damage leaves a valid file, but most must not.
    assert 0 < outcome.read < 150
