"""SCTD: the definition, step by step, and its segments. No authors' code was at hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.schedule import ddim_step
from ge3d_jax.guidance.sctd import SCTD
from tests.guidance import golden, smooth


@pytest.mark.parametrize("has_perp_neg", [False, True])
@pytest.mark.parametrize(("index", "earlier", "start"), [(450, 400, 400), (580, 520, 400), (30, 0, 0)])
def test_residual_is_what_lies_between_both_ends_of_the_segment(has_perp_neg, index, earlier, start):
    loss = SCTD(delta_end=60, warm_up_iterations=100)
    with jax.enable_x64(True):
        world = smooth.world(has_perp_neg=has_perp_neg)
        progress = world.progress(200)
        drawn = world.drawn(loss, 200)
        drawn.shared["index"] = jnp.int32(index)
        gradient, numbers = world.gradient_of(loss, drawn, progress)
        path = loss.path(world.latents, world.text, drawn, world.denoiser, progress)
        assert int(path.times[path.active - 1]) == earlier + 1 and int(path.times[-1]) == index + 1
        before = path.states[path.active - 1]
        unguided = world.denoiser.predict_for(before, earlier + 1, world.text.empty)[0]
        branches = world.denoiser.branches(path.end, index + 1, world.text, world.text.negative)
        one, other = (
            ddim_step(world.schedule, x, epsilon, now + 1, start + 1)
            for x, epsilon, now in ((before, unguided, earlier), (path.end, branches.guided(7.5), index))
        )
        expected = np.asarray(one - other)
    assert golden.largest_difference(gradient, 0.1 * expected) < 1e-10
    np.testing.assert_allclose(numbers["loss"], np.sum(expected**2, axis=(1, 2, 3)), rtol=1e-9)


@pytest.mark.parametrize("segments", [1, 3, 5, 1000])
def test_segments_cover_the_path(segments):
    indices = np.arange(1, 1000)
    starts = np.asarray(SCTD(segments=segments).segment_start(jnp.asarray(indices)))
    edges = [1000 * number // segments for number in range(segments)]
    expected = [max(edge for edge in edges if edge < index) for index in indices]
    np.testing.assert_array_equal(starts, expected)


@pytest.mark.parametrize("segments", [0, 1001])
def test_settings_that_cannot_be(segments):
    with pytest.raises(UserError, match="segments"):
        SCTD(segments=segments)
