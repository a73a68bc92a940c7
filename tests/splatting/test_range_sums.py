import chex
import jax.numpy as jnp
import numpy as np

from ge3d_jax.splatting.range_sums import sum_ranges


def test_a_range_is_summed_as_a_loop_sums_it():
    random = np.random.default_rng(0)
    values = random.normal(size=(37, 3)).astype(np.float32)
    begins = random.integers(0, 38, size=200)
    ends = np.minimum(begins + random.integers(0, 14, size=200), 37)
    # The full range, the last row, and empty ranges at either end.
    begins = np.append(begins, [0, 36, 0, 37]).astype(np.int32)
    ends = np.append(ends, [37, 37, 0, 37]).astype(np.int32)
    expected = np.stack([values[begin:end].sum(axis=0) for begin, end in zip(begins, ends, strict=True)])
    result = sum_ranges(jnp.asarray(values), jnp.asarray(begins), jnp.asarray(ends), longest=37)
    chex.assert_trees_all_close(result, expected, atol=1e-5)


def test_rows_outside_a_range_do_not_affect_it():
    values = jnp.full((16, 1), jnp.nan).at[5:9].set(1.0)
    result = sum_ranges(values, jnp.asarray([5, 6]), jnp.asarray([9, 8]), longest=4)
    chex.assert_trees_all_equal(result, jnp.asarray([[4.0], [2.0]]))
