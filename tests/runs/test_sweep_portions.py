"""The number of seeds computed together if memory does not suffice for all."""

import pytest

from ge3d_jax.runs.sweep_portions import in_portions, make_in_portions
from ge3d_jax.training.compilation import DoesNotFit

ITEMS = list(range(6))
HELD = 400
OUT_OF_MEMORY = RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.")


@pytest.fixture
def make():
    """(most, error of a portion) → (portions tried, result of each, messages)."""

    def make(most, error_of):
        tried, said = [], []

        def attempt(portion):
            tried.append(list(portion))
            error = error_of(portion)
            if error is not None:
                raise error

        ended = list(make_in_portions(ITEMS, most, attempt, held=HELD, say=said.append))
        return tried, [(list(portion), failure) for portion, failure in ended], said

    return make


def does_not_fit(portion):
    """Each item takes 100 bytes in addition to those held, out of 650."""
    needed = HELD + 100 * len(portion)
    return DoesNotFit("too large", needed=needed, limit=650) if needed > 650 else None


def test_portions_are_nearly_equal():
    objects = list(range(10))
    assert in_portions(objects, 4) == [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert in_portions(objects, 20) == [objects]


def test_as_many_go_at_a_time_as_fit(make):
    tried, ended, said = make(6, does_not_fit)
    assert tried == [ITEMS, [0, 1], [2, 3], [4, 5]]
    assert ended == [([0, 1], None), ([2, 3], None), ([4, 5], None)]
    assert said == ["6 seeds take more memory than there is; trying 2 at a time."]


def test_a_plan_that_was_too_hopeful_is_lowered_by_one_at_least(make):
    def error_of(portion):
        return DoesNotFit("too large", needed=650, limit=650) if len(portion) > 2 else None

    tried, _, _ = make(4, error_of)
    assert [len(portion) for portion in tried] == [3, 2, 2, 2]


def test_a_device_that_runs_out_of_memory_gets_half_as_many(make):
    tried, ended, said = make(6, lambda portion: OUT_OF_MEMORY if len(portion) > 3 else None)
    assert tried == [ITEMS, [0, 1, 2], [3, 4, 5]] and all(failure is None for _, failure in ended)
    assert said == ["The device ran out of memory; trying 3 at a time."]


def test_all_that_are_left_fail_where_one_does_not_fit(make):
    error = DoesNotFit("too large", needed=500, limit=450)
    tried, ended, _ = make(1, lambda portion: error if portion[0] == 2 else None)
    assert tried == [[0], [1], [2]]
    assert ended == [([0], None), ([1], None), ([2, 3, 4, 5], error)]


def test_another_error_is_of_its_portion_alone(make):
    error = ValueError("by chance")
    _, ended, _ = make(2, lambda portion: error if 2 in portion else None)
    assert ended == [([0, 1], None), ([2, 3], error), ([4, 5], None)]
    # A single item that runs out of memory is not retried.
    _, ended, said = make(1, lambda portion: OUT_OF_MEMORY)
    assert [failure for _, failure in ended] == [OUT_OF_MEMORY] * 6 and not said
