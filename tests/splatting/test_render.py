"""The rasterizer: closed forms and limits, overflow, sizes, vmap, reproducibility, memory, errors."""

import dataclasses
import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.splatting import groups, rasterize
from ge3d_jax.splatting.cameras import Camera, orbit_camera
from ge3d_jax.splatting.gaussians import Gaussians, make_gaussians
from ge3d_jax.splatting.lists import Splats2D, make_work
from ge3d_jax.splatting.projection import project
from ge3d_jax.splatting.rasterize import render
from ge3d_jax.splatting.reference import render_reference
from ge3d_jax.splatting.tiles import bin_splats
from tests.errors import relative_error


def simple_scene(count: int, capacity: int, seed: int = 0) -> Gaussians:
    random = np.random.default_rng(seed)
    return make_gaussians(
        jnp.asarray(0.3 * random.normal(size=(count, 3)), jnp.float32),
        jnp.asarray(random.uniform(size=(count, 3)), jnp.float32),
        jnp.asarray(random.uniform(0.02, 0.15, size=count), jnp.float32),
        jnp.asarray(random.uniform(0.1, 0.95, size=count), jnp.float32),
        capacity=capacity,
    )


def camera_at(azimuth: float, size: int | tuple[int, int] = 24) -> Camera:
    return orbit_camera(azimuth=azimuth, polar=1.3, radius=2.0, fov=0.7, size=size)


WHITE = jnp.ones(3)
draw = jax.jit(render, static_argnames="buffer_capacity")


def test_a_splat_beside_the_image_is_not_seen():
    # As far from the camera as the origin, far to the side.
    camera = orbit_camera(azimuth=0.0, polar=np.pi / 2, radius=2.0, fov=0.7, size=24)
    beside = make_gaussians(
        jnp.array([[0.0, 5.0, 0.0]]), jnp.ones((1, 3)), jnp.array([0.1]), jnp.array([0.9]), capacity=1
    )
    image = draw(beside, camera, background=WHITE, buffer_capacity=64)
    assert float(project(beside, camera).radii[0]) > 0
    assert float(image.radii[0]) == 0.0 and int(image.intersections) == 0


def test_a_needle_is_as_large_as_its_longer_axis():
    scale, opacity, distance = 0.3, 0.6, 2.0
    needle = make_gaussians(
        jnp.zeros((1, 3)), jnp.ones((1, 3)), jnp.array([scale]), jnp.array([opacity]), capacity=1
    )
    # Seen from +x: across the view, 30 degrees from its horizontal.
    half = np.deg2rad(15.0)
    needle = needle.replace(
        log_scales=jnp.log(jnp.array([[0.01, scale, 0.01]])),
        quaternions=jnp.array([[np.cos(half), np.sin(half), 0.0, 0.0]], jnp.float32),
    )
    camera = orbit_camera(azimuth=0.0, polar=np.pi / 2, radius=distance, fov=0.7, size=24)
    image = draw(needle, camera, background=WHITE, buffer_capacity=64)
    variance = (float(camera.intrinsics[0]) * scale / distance) ** 2 + 0.3
    assert float(image.radii[0]) == pytest.approx(np.sqrt(2 * np.log(255 * opacity) * variance), rel=1e-3)


def test_an_empty_scene_is_the_background():
    background = jnp.array([0.1, 0.7, 0.3])
    empty = make_gaussians(jnp.zeros((0, 3)), jnp.zeros((0, 3)), jnp.zeros(0), jnp.zeros(0), capacity=5)
    image = draw(empty, camera_at(0.3), background=background, buffer_capacity=64)
    np.testing.assert_array_equal(image.rgb, np.broadcast_to(background, (24, 24, 3)))
    assert not np.any(image.alpha) and not np.any(image.depth) and not np.any(image.radii)
    assert int(image.intersections) == 0 and int(image.overflow) == 0


@pytest.mark.parametrize("dilation", [0.3, 0.02])
def test_one_splat_has_the_closed_form(dilation):
    scale, opacity, distance, size = 0.1, 0.6, 2.0, 17
    color = jnp.array([[0.9, 0.2, 0.4]])
    splat = make_gaussians(jnp.zeros((1, 3)), color, jnp.array([scale]), jnp.array([opacity]), capacity=1)
    camera = orbit_camera(azimuth=0.4, polar=1.0, radius=distance, fov=0.6, size=size)
    image = draw(splat, camera, background=WHITE, buffer_capacity=64, dilation=dilation)
    variance = (float(camera.intrinsics[0]) * scale / distance) ** 2 + dilation
    along = np.arange(size) + 0.5 - size / 2
    alpha = opacity * np.exp(-(along[:, None] ** 2 + along**2) / (2 * variance))
    alpha = np.where(alpha < 1 / 255, 0.0, alpha)
    np.testing.assert_allclose(image.alpha, alpha, atol=2e-6)
    np.testing.assert_allclose(image.depth, np.where(alpha > 0, distance, 0.0), rtol=1e-5)
    np.testing.assert_allclose(
        image.rgb, alpha[..., None] * np.asarray(color[0]) + (1 - alpha[..., None]), atol=3e-6
    )
    assert float(image.radii[0]) == pytest.approx(np.sqrt(2 * np.log(255 * opacity) * variance), rel=1e-5)


def test_compensation_keeps_the_light_of_a_thin_splat():
    focal, distance, logit, size = 20.0, 2.0, 0.3, 9
    camera = dataclasses.replace(
        orbit_camera(azimuth=0.4, polar=1.0, radius=distance, fov=0.6, size=size),
        intrinsics=jnp.array([focal, focal, size / 2, size / 2]),
    )

    def middle(log_scale, antialiased):
        splat = make_gaussians(jnp.zeros((1, 3)), jnp.ones((1, 3)), jnp.ones(1), jnp.ones(1), capacity=1)
        splat = dataclasses.replace(
            splat, log_scales=jnp.full((1, 3), log_scale), opacity_logits=jnp.array([logit])
        )
        image = render(splat, camera, background=WHITE, buffer_capacity=16, antialiased=antialiased)
        return image.alpha[size // 2, size // 2]

    @jax.jit
    def compute(log_scale):
        return *jax.value_and_grad(middle)(log_scale, True), middle(log_scale, False)

    for scale in (0.02, 0.3):
        # A round splat of s² px² becomes one of s² + 0.3 px²: its area grows by their ratio.
        variance = (focal * scale / distance) ** 2
        kept = variance / (variance + 0.3)
        alpha = kept / (1 + np.exp(-logit))
        value, slope, plain = compute(float(np.log(scale)))
        assert float(value) == pytest.approx(alpha, rel=1e-5)
        assert float(slope) == pytest.approx(2 * alpha * (1 - kept), rel=1e-4)
        assert float(plain) == pytest.approx(alpha / kept, rel=1e-5)


def test_splats_behind_or_in_the_camera_are_invisible_and_inert():
    camera = camera_at(0.0)
    eye = -camera.world_to_camera[:3, :3].T @ camera.world_to_camera[:3, 3]
    positions = jnp.stack([eye, 2 * eye, eye * 1.0001])
    scene = make_gaussians(positions, jnp.zeros((3, 3)), jnp.full(3, 0.5), jnp.full(3, 0.9), capacity=3)

    def loss(positions):
        image = render(
            dataclasses.replace(scene, positions=positions), camera, background=WHITE, buffer_capacity=64
        )
        return jnp.sum(image.rgb**2 + image.depth[..., None]), image

    gradient, image = jax.jit(jax.grad(loss, has_aux=True))(positions)
    np.testing.assert_array_equal(image.rgb, 1.0)
    np.testing.assert_array_equal(gradient, 0.0)
    assert not np.any(image.radii)


@pytest.mark.parametrize("opacity", [0.05, 0.999])
def test_hundreds_of_splats_on_one_pixel(opacity):
    random = np.random.default_rng(3)
    count = 300
    positions = jnp.asarray(
        np.stack([random.uniform(-0.2, 0.2, count), *np.zeros((2, count))], -1), jnp.float32
    )
    scene = make_gaussians(
        positions,
        jnp.asarray(random.uniform(size=(count, 3)), jnp.float32),
        jnp.full(count, 1e-4),
        jnp.full(count, opacity),
        capacity=count,
    )
    camera = orbit_camera(azimuth=0.0, polar=np.pi / 2, radius=2.0, fov=0.7, size=9)

    def loss(colors_and_logits, renderer):
        colors, logits = colors_and_logits
        image = renderer(
            dataclasses.replace(scene, sh=colors, opacity_logits=logits), camera, background=WHITE
        )
        return jnp.sum(image.rgb**2), image.rgb

    parameters = (scene.sh, scene.opacity_logits)
    fast = jax.jit(
        jax.grad(
            functools.partial(loss, renderer=functools.partial(render, buffer_capacity=1500)), has_aux=True
        )
    )(parameters)
    slow = jax.jit(jax.grad(functools.partial(loss, renderer=render_reference), has_aux=True))(parameters)
    for value, expected in zip(jax.tree.leaves(fast), jax.tree.leaves(slow), strict=True):
        assert relative_error(value, expected) <= 1e-4


def test_overflow_is_counted_and_an_exact_fit_is_complete():
    scene, camera = simple_scene(60, 64), camera_at(1.0)
    roomy = draw(scene, camera, background=WHITE, buffer_capacity=1024)
    needed = int(roomy.intersections)
    assert 60 < needed < 1024 and int(roomy.overflow) == 0
    exact = draw(scene, camera, background=WHITE, buffer_capacity=needed)
    assert int(exact.overflow) == 0
    # A different length gives a different program, which may round differently.
    np.testing.assert_allclose(exact.rgb, roomy.rgb, atol=1e-6)
    short = draw(scene, camera, background=WHITE, buffer_capacity=needed - 7)
    assert int(short.overflow) == 7 and int(short.intersections) == needed
    assert np.all(np.isfinite(short.rgb))


@pytest.mark.parametrize("size", [(13, 30), (33, 5), (1, 1)])
def test_any_image_size(size):
    scene, camera = simple_scene(20, 20), camera_at(0.5, size)
    image = draw(scene, camera, background=WHITE, buffer_capacity=600)
    expected = jax.jit(render_reference)(scene, camera, background=WHITE)
    assert image.rgb.shape == (size[1], size[0], 3) and int(image.overflow) == 0
    for name in ("rgb", "alpha", "depth"):
        np.testing.assert_allclose(getattr(image, name), getattr(expected, name), atol=2e-5)


def test_vmap_over_cameras_splats_and_both_is_a_loop():
    scenes = [simple_scene(30, 32, seed) for seed in range(2)]
    cameras = [camera_at(azimuth) for azimuth in (0.0, 1.0, 2.5)]
    many_scenes = jax.tree.map(lambda *leaves: jnp.stack(leaves), *scenes)
    many_cameras = jax.tree.map(lambda *leaves: jnp.stack(leaves), *cameras)

    def loss(positions, scene, camera):
        scene = dataclasses.replace(scene, positions=positions)
        image = render(scene, camera, background=WHITE, buffer_capacity=400)
        return jnp.sum(image.rgb**2), image

    single = jax.jit(jax.grad(loss, has_aux=True))
    over_cameras = jax.vmap(jax.grad(loss, has_aux=True), (None, None, 0))
    over_both = jax.jit(jax.vmap(over_cameras, (0, 0, None)))
    gradients, images = over_both(many_scenes.positions, many_scenes, many_cameras)
    for i, scene in enumerate(scenes):
        total = 0.0
        for j, camera in enumerate(cameras):
            gradient, image = single(scene.positions, scene, camera)
            for name in ("rgb", "alpha", "depth", "radii"):
                np.testing.assert_allclose(getattr(images, name)[i, j], getattr(image, name), atol=1e-5)
            assert int(images.intersections[i, j]) == int(image.intersections)
            assert relative_error(gradients[i, j], gradient) <= 1e-5
            total += gradient
        if i == 0:
            # The gradient through a vmap, as in a training step.
            summed = jax.grad(
                lambda p: jnp.sum(jax.vmap(loss, (None, None, 0))(p, scenes[0], many_cameras)[0])
            )
            assert relative_error(jax.jit(summed)(scene.positions), total) <= 1e-5


def test_order_in_the_buffer_and_padding_do_not_matter():
    scene, camera = simple_scene(40, 40), camera_at(0.2)
    shuffle = np.random.default_rng(0).permutation(40)
    shuffled = jax.tree.map(lambda leaf: leaf[shuffle], scene)
    padded = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf[:9]]), scene)
    padded = dataclasses.replace(padded, mask=jnp.arange(49) < 40)
    expected = draw(scene, camera, background=WHITE, buffer_capacity=500)
    for other in (shuffled, padded):
        image = draw(other, camera, background=WHITE, buffer_capacity=500)
        np.testing.assert_allclose(image.rgb, expected.rgb, atol=1e-6)
        assert int(image.intersections) == int(expected.intersections)


def test_a_vmap_of_the_backward_pass_is_a_loop():
    scene, camera = simple_scene(20, 20), camera_at(0.4, 12)

    def image(positions):
        moved = dataclasses.replace(scene, positions=positions)
        return render(moved, camera, background=WHITE, buffer_capacity=128).rgb

    directions = jax.random.normal(jax.random.key(0), (3, 12, 12, 3))
    pull = jax.jit(lambda d: jax.vjp(image, scene.positions)[1](d)[0])
    many = jax.jit(lambda d: jax.vmap(jax.vjp(image, scene.positions)[1])(d)[0])(directions)
    for direction, gradient in zip(directions, many, strict=True):
        assert relative_error(gradient, pull(direction)) <= 1e-5


def deep_scene() -> Gaussians:
    """A scene so dense that most splats are hidden."""
    random = np.random.default_rng(5)
    count = 500
    return make_gaussians(
        jnp.asarray(0.3 * random.normal(size=(count, 3)), jnp.float32),
        jnp.asarray(random.uniform(size=(count, 3)), jnp.float32),
        jnp.full(count, 0.3),
        jnp.full(count, 0.8),
        capacity=count,
    )


def test_tiles_that_are_dark_are_finished_early(monkeypatch):
    scene, camera = deep_scene(), camera_at(0.3, 16)

    def composite():
        projected = project(scene, camera)
        lists = bin_splats(projected, width=16, height=16, buffer_capacity=3000)
        splats = Splats2D(projected.means, projected.whitening, projected.opacities, projected.colors)
        work, stored = make_work(2, 2, splats, lists, groups.CHUNK)
        sums, light, _, done = groups.GROUPS.forward(work, stored)
        return sums[:, :3] + light[:, None], jnp.sum(done)

    results = {}
    for threshold in (-1.0, groups.MIN_TRANSMITTANCE, 1e-4):
        monkeypatch.setattr(groups, "MIN_TRANSMITTANCE", threshold)
        # Newer JAX caches the trace with the previous value.
        jax.clear_caches()
        results[threshold] = jax.jit(lambda: composite())()
    full, full_count = results.pop(-1.0)
    for threshold, (image, count) in results.items():
        # The omitted part is at most the remaining light, times colors of at most 1.
        assert np.max(np.abs(image - full)) <= 2 * threshold + 1e-6
        assert int(count) < 0.7 * int(full_count)


def test_the_same_input_gives_the_same_bits():
    scene, camera = simple_scene(200, 256), camera_at(0.7, (40, 24))

    def loss(scene, camera):
        image = render(scene, camera, background=WHITE, buffer_capacity=4096)
        return jnp.sum(image.rgb**2) + jnp.sum(image.depth), image

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True, allow_int=True))
    first = jax.tree.leaves(step(scene, camera))
    for _ in range(3):
        for one, other in zip(first, jax.tree.leaves(step(scene, camera)), strict=True):
            if one.dtype != jax.dtypes.float0:
                np.testing.assert_array_equal(one, other)

    # On a GPU, results vary if threads add to one location in arbitrary order, so writes must not collide.
    scatters = [
        equation
        for equation in equations(jax.make_jaxpr(step)(scene, camera).jaxpr)
        if equation.primitive.name.startswith("scatter")
        and jnp.issubdtype(equation.invars[0].aval.dtype, jnp.floating)
    ]
    assert scatters and all(equation.params["unique_indices"] for equation in scatters)


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(inner)


def test_memory_is_bounded_by_buffer_pixels_and_splats():
    capacity, size, count = 2**16, 128, 4096
    scene = jax.eval_shape(lambda: simple_scene(1, count))
    camera = jax.eval_shape(lambda: camera_at(0.0, size))

    def loss(scene, camera):
        image = render(scene, camera, background=WHITE, buffer_capacity=capacity)
        return jnp.sum(image.rgb) + jnp.sum(image.depth)

    lowered = jax.jit(jax.grad(loss, allow_int=True)).lower(scene, camera)
    used = lowered.compile().memory_analysis().temp_size_in_bytes
    assert used <= 120 * capacity + 100 * size**2 + 300 * count


def test_an_image_outside_of_jit_finds_its_buffer(monkeypatch):
    scene, camera = simple_scene(60, 64), camera_at(1.0)
    expected = draw(scene, camera, background=WHITE, buffer_capacity=1024)
    monkeypatch.setattr(rasterize, "FIRST_CAPACITY", int(expected.intersections) - 1)
    image = rasterize.render_image(scene, camera, background=WHITE)
    assert int(image.overflow) == 0
    np.testing.assert_allclose(image.rgb, expected.rgb, atol=1e-6)
    monkeypatch.setattr(rasterize, "LARGEST_CAPACITY", int(expected.intersections) + 1)
    image = rasterize.render_image(scene, camera, background=WHITE)
    np.testing.assert_allclose(image.rgb, expected.rgb, atol=1e-6)
    monkeypatch.setattr(rasterize, "LARGEST_CAPACITY", 100)
    with pytest.raises(UserError, match="render a smaller image"):
        rasterize.render_image(scene, camera, background=WHITE)


def test_the_longest_buffer_fits_the_memory(monkeypatch):
    scene, camera = simple_scene(20, 20), camera_at(1.0)
    for memory in (2**30, 2**34):
        monkeypatch.setattr(rasterize, "memory_limit", lambda _, memory=memory: memory)
        capacity = rasterize.largest_capacity()
        draw_all = functools.partial(render, background=WHITE, buffer_capacity=capacity)
        plan = jax.jit(draw_all).lower(scene, camera).compile().memory_analysis()
        assert 0.2 * memory < plan.temp_size_in_bytes < 0.7 * memory
    monkeypatch.setattr(rasterize, "memory_limit", lambda _: None)
    assert rasterize.largest_capacity() == rasterize.LARGEST_CAPACITY


def test_errors_name_the_argument():
    with pytest.raises(UserError, match="buffer_capacity"):
        render(simple_scene(1, 1), camera_at(0.0), background=WHITE, buffer_capacity=0)
    with pytest.raises(UserError, match="capacity is 2"):
        simple_scene(3, 2)
    with pytest.raises(UserError, match="sh_degree"):
        make_gaussians(
            jnp.zeros((1, 3)), jnp.zeros((1, 3)), jnp.ones(1), jnp.ones(1), capacity=1, sh_degree=4
        )
    with pytest.raises(UserError, match="coefficients"):
        odd = dataclasses.replace(simple_scene(1, 1), sh=jnp.zeros((1, 5, 3)))
        render(odd, camera_at(0.0), background=WHITE, buffer_capacity=8)
