"""The rasterizer compared with brute force and finite differences on random scenes, values and gradients."""

import dataclasses
import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ge3d_jax.splatting.cameras import Camera, orbit_camera
from ge3d_jax.splatting.gaussians import Gaussians
from ge3d_jax.splatting.rasterize import render
from ge3d_jax.splatting.reference import render_reference
from tests.errors import relative_error

COUNT, PADDING, WIDTH, HEIGHT, CAPACITY = 24, 4, 21, 18, 512
BACKGROUND = np.array([0.2, 0.5, 0.9])
KINDS = (
    "ordinary",
    "needle",
    "huge",
    "opaque",
    "faint",
    "coincident",
    "around the camera",
    "between planes",
)


def random_scene(kind: str, seed: int) -> dict:
    """Splats, pose, offsets, factors and image gradients of one random scene, float64 arrays."""
    random = np.random.default_rng(seed)
    positions = 0.4 * random.normal(size=(COUNT, 3))
    log_scales = random.uniform(-3.0, -1.2, size=(COUNT, 3))
    opacity_logits = 2.0 * random.normal(size=COUNT)
    if kind == "needle":
        log_scales[:, 0], log_scales[:, 1:] = 0.0, -7.0
    elif kind == "huge":
        log_scales += 3.0
    elif kind == "opaque":
        opacity_logits[:] = 6.0
    elif kind == "faint":
        opacity_logits[:] = random.uniform(-6.5, -4.0, size=COUNT)
    elif kind == "coincident":
        positions[:] = positions[0]
    elif kind in ("around the camera", "between planes"):
        positions *= 5.0
    return {
        "gaussians": Gaussians(
            positions=positions,
            log_scales=log_scales,
            quaternions=random.normal(size=(COUNT, 4)),
            opacity_logits=opacity_logits,
            sh=0.3 * random.normal(size=(COUNT, 16, 3)),
            mask=np.arange(COUNT) < COUNT - PADDING,
        ),
        "azimuth": random.uniform(0, 2 * np.pi),
        "motion": np.zeros((4, 4)),
        "intrinsics": np.array([25.0, 27.0, 0.45 * WIDTH, 0.55 * HEIGHT]),
        "background": BACKGROUND,
        "offsets": 0.3 * random.normal(size=(COUNT, 2)),
        "colors": 0.3 * random.normal(size=(COUNT, 3)),
        "factors": random.uniform(0.8, 1.2, size=(COUNT, 3)),
        "limits": (0.3, 4.0) if kind == "between planes" else (0.01, np.inf),
        "image_gradients": random.normal(size=(HEIGHT, WIDTH, 5)),
    }


def scene_image(parameters: dict, limits: np.ndarray, renderer) -> tuple[jax.Array, jax.Array, jax.Array]:
    pose = orbit_camera(azimuth=parameters["azimuth"], polar=1.1, radius=2.0, fov=0.7, size=1).world_to_camera
    camera = Camera(
        # Perturb every matrix entry, not just along rigid motions.
        world_to_camera=jax.lax.stop_gradient(pose) + parameters["motion"],
        intrinsics=parameters["intrinsics"],
        width=WIDTH,
        height=HEIGHT,
    )
    image = renderer(
        parameters["gaussians"],
        camera,
        background=parameters["background"],
        screen_offsets=parameters["offsets"],
        color_offsets=parameters["colors"],
        scale_multiplier=parameters["factors"],
        near=limits[0],
        far=limits[1],
    )
    return image.rgb, image.alpha, image.depth


def scene_loss(parameters: dict, mask: np.ndarray, limits: np.ndarray, gradients: np.ndarray, renderer):
    """A random linear function of the image, and the image."""
    gaussians = dataclasses.replace(parameters["gaussians"], mask=mask)
    rgb, alpha, depth = scene_image({**parameters, "gaussians": gaussians}, limits, renderer)
    channels = jnp.concatenate([rgb, alpha[..., None], depth[..., None]], axis=-1)
    return jnp.sum(channels * gradients), (rgb, alpha, depth)


@functools.cache
def compiled(is_reference: bool, is_double: bool, rasterizer):
    fast = functools.partial(render, buffer_capacity=CAPACITY, rasterizer=rasterizer)
    renderer = render_reference if is_reference else fast
    return jax.jit(jax.value_and_grad(functools.partial(scene_loss, renderer=renderer), has_aux=True))


def values_and_gradients(scene: dict, *, is_reference: bool, is_double: bool, rasterizer="auto"):
    with jax.enable_x64(is_double):
        dtype = np.float64 if is_double else np.float32
        scene = dict(scene)
        gradients = np.asarray(scene.pop("image_gradients"), dtype)
        limits = np.asarray(scene.pop("limits"), dtype)
        mask = scene["gaussians"].mask
        # The mask is not differentiable, so it is passed separately, with a placeholder in its place.
        scene["gaussians"] = dataclasses.replace(scene["gaussians"], mask=np.zeros(0))
        scene = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), scene)
        (_, images), gradients = compiled(is_reference, is_double, rasterizer)(scene, mask, limits, gradients)
        return jax.tree.map(np.asarray, (images, gradients))


def assert_close(value, expected, tolerance: float) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(expected):
        other = functools.reduce(
            lambda node, entry: (
                getattr(node, entry.name) if hasattr(entry, "name") else node[entry_key(entry)]
            ),
            path,
            value,
        )
        name = jax.tree_util.keystr(path)
        # Remainders of canceling large terms, or of a background behind opaque splats, are less precise.
        error = relative_error(other, leaf, floor=1.0 if "background" in name else 1e-2)
        assert error <= tolerance, (name, error)


def entry_key(entry):
    return entry.key if hasattr(entry, "key") else entry.idx


@settings(max_examples=100)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 2**31))
def test_values_and_gradients_equal_brute_force(kind, seed):
    scene = random_scene(kind, seed)
    fast = values_and_gradients(scene, is_reference=False, is_double=False)
    exact = values_and_gradients(scene, is_reference=True, is_double=True)
    assert np.all(np.isfinite(np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(fast)])))
    assert_close(fast, exact, 1e-4)
    for field in ("positions", "log_scales", "quaternions", "opacity_logits", "sh"):
        assert not np.any(getattr(fast[1]["gaussians"], field)[-PADDING:])


@pytest.mark.parametrize("seed", range(3))
def test_gradients_equal_finite_differences_in_double_precision(seed):
    # Wide splats of moderate opacity: at each pixel every alpha is far from 1/255 and from the cap, where the
    # image is not smooth and difference quotients are meaningless. The same goes for colors near black.
    scene = random_scene("huge", seed)
    random = np.random.default_rng(seed)
    wide = dataclasses.replace(
        scene["gaussians"],
        log_scales=random.uniform(0.0, 0.5, size=(COUNT, 3)),
        opacity_logits=random.uniform(-1.0, 1.0, size=COUNT),
        sh=0.05 * random.normal(size=(COUNT, 16, 3)),
    )
    scene = {**scene, "gaussians": wide}
    _, gradients = values_and_gradients(scene, is_reference=False, is_double=True)

    def loss(step: float, name: str, direction) -> float:
        moved = jax.tree.map(lambda leaf, along: leaf + step * along, scene[name], direction)
        if name == "gaussians":
            moved = dataclasses.replace(moved, mask=wide.mask)
        images, _ = values_and_gradients({**scene, name: moved}, is_reference=False, is_double=True)
        channels = np.concatenate([images[0], images[1][..., None], images[2][..., None]], axis=-1)
        return float(np.sum(channels * scene["image_gradients"]))

    for name in ("gaussians", "motion", "intrinsics", "background", "offsets", "factors"):
        direction = jax.tree.map(lambda leaf: random.normal(size=leaf.shape), scene[name])
        if name == "motion":
            direction[3] = 0.0
        step = 1e-5
        slope = (loss(step, name, direction) - loss(-step, name, direction)) / (2 * step)
        expected = sum(
            np.sum(gradient * along)
            for gradient, along in zip(
                jax.tree.leaves(gradients[name]), jax.tree.leaves(direction), strict=True
            )
            if gradient.shape == along.shape
        )
        assert slope == pytest.approx(expected, rel=1e-6, abs=1e-7), name
