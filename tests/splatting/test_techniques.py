"""All compositing techniques give the same picture: brute force, finite differences, views, limits."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ge3d_jax.core.devices import Target, compiling_for
from ge3d_jax.core.errors import UserError
from ge3d_jax.splatting.alphas import PIXELS
from ge3d_jax.splatting.compositing import composite
from ge3d_jax.splatting.gaussians import Gaussians
from ge3d_jax.splatting.groups import GROUPS
from ge3d_jax.splatting.kernel import kernel
from ge3d_jax.splatting.lists import Splats2D
from ge3d_jax.splatting.rasterize import render
from ge3d_jax.splatting.segments import segments
from ge3d_jax.splatting.techniques import technique_of
from ge3d_jax.splatting.tiles import TileLists
from tests.errors import relative_error
from tests.splatting.test_exactness import KINDS, assert_close, random_scene, values_and_gradients
from tests.splatting.test_render import camera_at, deep_scene, simple_scene

# Pieces so short and so few at a time that tiles continue from step to step.
TECHNIQUES = {"segments": segments(length=8, pieces=5), "kernel": kernel(interpret=True)}
BACKGROUND = jnp.array([0.2, 0.5, 0.9])


@settings(max_examples=50)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 2**31))
def test_values_and_gradients_equal_brute_force(kind, seed):
    scene = random_scene(kind, seed)
    exact = values_and_gradients(scene, is_reference=True, is_double=True)
    for technique in TECHNIQUES.values():
        fast = values_and_gradients(scene, is_reference=False, is_double=False, rasterizer=technique)
        assert np.all(np.isfinite(np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(fast)])))
        assert_close(fast, exact, 1e-4)


def one_tile(count: int, seed: int) -> tuple[Splats2D, TileLists]:
    """Wide splats of moderate opacity in the lists of two tiles, so that no alpha is cut off or clipped."""
    random = np.random.default_rng(seed)
    splats = Splats2D(
        means=random.uniform(0.0, 16.0, size=(count, 2)),
        whitening=np.stack(
            [*random.uniform(0.05, 0.1, size=(2, count)), 0.02 * random.normal(size=count)], 1
        ),
        opacities=random.uniform(0.2, 0.8, size=count),
        features=random.normal(size=(count, 2)),
    )
    # The first tile lists all splats, the second one the last three; a splat's slots are adjacent.
    slots = np.concatenate([np.arange(count), count - 3 + 2 * np.arange(3) + 1])
    slots[count - 3 : count] = count - 3 + 2 * np.arange(3)
    ends = np.concatenate([np.arange(1, count - 2), count - 3 + 2 * np.arange(1, 4)])
    return splats, TileLists(
        splats=np.concatenate([np.arange(count), np.arange(count - 3, count)]).astype(np.int32),
        slots=slots.astype(np.int32),
        starts=np.array([0, count, count + 3], np.int32),
        slot_begins=np.concatenate([[0], ends[:-1]]).astype(np.int32),
        slot_ends=ends.astype(np.int32),
        intersections=np.int32(count + 3),
        overflow=np.int32(0),
        touched=np.ones(count, bool),
    )


def test_joined_pieces_have_the_gradient_of_finite_differences():
    splats, lists = one_tile(13, seed=3)
    random = np.random.default_rng(0)
    along_sums, along_light = random.normal(size=(2, 3, PIXELS)), random.normal(size=(2, PIXELS))
    directions = Splats2D(*(random.normal(size=field.shape) * 0.1 for field in splats))
    with jax.enable_x64(True):

        @jax.jit
        def loss(step):
            moved = jax.tree.map(lambda field, along: jnp.asarray(field) + step * along, splats, directions)
            sums, light = composite(2, 1, moved, lists, segments(length=4, pieces=2))
            return jnp.sum(sums * along_sums) + jnp.sum(light * along_light)

        slope = jax.jit(jax.grad(loss))(0.0)
        step = 1e-5
        assert float(loss(step) - loss(-step)) / (2 * step) == pytest.approx(float(slope), rel=1e-8)


def test_a_dark_pixel_among_bright_ones_keeps_its_gradient():
    """Its light is below the range of float32, while the tile continues for the other pixels."""
    count = 40
    splats = Splats2D(
        means=jnp.full((count, 2), 3.5),
        whitening=jnp.tile(jnp.array([1.5, 1.5, 0.0]), (count, 1)),
        opacities=jnp.ones(count),
        features=jnp.asarray(np.random.default_rng(0).normal(size=(count, 1)), jnp.float32),
    )
    each = np.arange(count + 1, dtype=np.int32)
    lists = TileLists(
        splats=each[:-1],
        slots=each[:-1],
        starts=np.array([0, count], np.int32),
        slot_begins=each[:-1],
        slot_ends=each[1:],
        intersections=np.int32(count),
        overflow=np.int32(0),
        touched=np.ones(count, bool),
    )

    def loss(splats, technique):
        sums, _ = composite(1, 1, splats, lists, technique)
        return jnp.sum(sums[0] * jnp.arange(1.0, PIXELS + 1))

    gradients, expected = (
        jax.jit(jax.grad(functools.partial(loss, technique=technique)))(splats)
        for technique in (TECHNIQUES["kernel"], GROUPS)
    )
    for value, other in zip(gradients, expected, strict=True):
        assert relative_error(value, other, floor=1e-3) <= 1e-4


# Enough for all scenes except the deep one, whose lists are composited as far as they go.
CAPACITY = 220


@functools.cache
def compiled(technique):
    """Loss, pictures and gradients of several splat sets, all seen by the same cameras."""

    def loss(scene, cameras):
        def one(camera):
            return render(
                scene, camera, background=BACKGROUND, buffer_capacity=CAPACITY, rasterizer=technique
            )

        images = jax.vmap(one)(cameras)
        return jnp.sum(images.rgb**2) + jnp.sum(images.depth), images

    step = jax.value_and_grad(loss, has_aux=True, allow_int=True)
    return jax.jit(jax.vmap(step, (0, None)))


def seen(technique, scenes: list[Gaussians]):
    """The results of `compiled` for two cameras and pictures wider than high, except for the mask."""
    cameras = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[camera_at(a, (21, 13)) for a in (0.2, 1.9)])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *scenes)
    (_, images), gradients = compiled(technique)(stacked, cameras)
    return images, dataclasses.replace(gradients, mask=None)


def turned(scene: Gaussians, seed: int) -> Gaussians:
    """The splats stretched to needles in all directions."""
    random = np.random.default_rng(seed)
    stretch = jnp.array([1.0, -1.0, -3.0])
    return dataclasses.replace(
        scene,
        log_scales=scene.log_scales + stretch,
        quaternions=jnp.asarray(random.normal(size=scene.quaternions.shape), jnp.float32),
    )


def scene_pair(kind: str) -> list[Gaussians]:
    """Two sets of 64 splats for one program: one of the given kind, and an ordinary one."""
    beside = turned(simple_scene(60, 64, seed=1), 1)
    if kind == "empty":
        return [dataclasses.replace(beside, mask=jnp.zeros(64, bool)), beside]
    if kind == "opaque":
        return [dataclasses.replace(beside, opacity_logits=jnp.full(64, 9.0)), beside]
    hidden = turned(jax.tree.map(lambda leaf: leaf[:64], deep_scene()), 2)
    return [hidden, beside]


@pytest.mark.parametrize("name", TECHNIQUES)
@pytest.mark.parametrize("kind", ["empty", "opaque", "deep"])
def test_views_of_vmapped_splat_sets_equal_those_of_groups(name, kind):
    scenes = scene_pair(kind)
    results, expected = seen(TECHNIQUES[name], scenes), seen(GROUPS, scenes)
    assert np.any(results[0].overflow) == (kind == "deep")
    for value, other in zip(jax.tree.leaves(results), jax.tree.leaves(expected), strict=True):
        assert relative_error(value, other, floor=1e-3) <= 1e-4


@pytest.mark.parametrize("name", TECHNIQUES)
def test_a_second_run_gives_the_same_bits(name):
    first, second = (seen(TECHNIQUES[name], scene_pair("deep")) for _ in range(2))
    chex.assert_trees_all_equal(first, second)


def test_a_processor_keeps_its_groups_and_settings_choose():
    assert technique_of("auto") is technique_of("xla") is technique_of("groups") is GROUPS
    assert technique_of("segments") is segments()
    with pytest.raises(UserError, match="'fast' does not exist; use one of auto, "):
        technique_of("fast")


@pytest.mark.parametrize("rasterizer", ["auto", "xla"])
def test_what_is_compiled_for_a_card_elsewhere_takes_the_accelerator_s_path(rasterizer):
    assert technique_of(rasterizer) is GROUPS
    with compiling_for(Target("gpu", (9, 0))):
        # The kernel must pass its check on the card, which is not present.
        assert technique_of(rasterizer) == segments()
