"""The rasterizer compared with PyTorch: gsplat's own projection and tiles, and the benchmark's peer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ge3d_jax.splatting.cameras import Camera, orbit_camera
from ge3d_jax.splatting.gaussians import Gaussians
from ge3d_jax.splatting.projection import MIN_ALPHA, project
from ge3d_jax.splatting.rasterize import render
from ge3d_jax.splatting.tiles import TILE_SIZE, bin_splats, tile_grid

torch = pytest.importorskip("torch")

COUNT, WIDTH, HEIGHT = 300, 61, 45


def random_splats(seed: int) -> tuple[Gaussians, Camera]:
    """Splats of all shapes around and behind a camera with an off-center principal point."""
    random = np.random.default_rng(seed)
    scales = random.uniform(-5.0, 0.5, size=(COUNT, 3))
    scales[::4] = np.log([0.5, 1e-3, 1e-3])
    gaussians = Gaussians(
        positions=1.5 * random.normal(size=(COUNT, 3)),
        log_scales=scales,
        quaternions=random.normal(size=(COUNT, 4)),
        opacity_logits=2.0 * random.normal(size=COUNT),
        sh=random.normal(size=(COUNT, 1, 3)),
        mask=np.ones(COUNT, bool),
    )
    pose = orbit_camera(azimuth=0.4, polar=1.2, radius=1.6, fov=0.7, size=1).world_to_camera
    camera = Camera(pose, jnp.array([55.0, 60.0, 0.4 * WIDTH, 0.6 * HEIGHT]), WIDTH, HEIGHT)
    return jax.tree.map(lambda a: jnp.asarray(a, bool if a.dtype == bool else jnp.float32), gaussians), camera


@pytest.mark.parametrize("seed", range(3))
def test_projection_and_tiles_agree_with_gsplat(seed):
    gsplat = pytest.importorskip("gsplat.cuda._torch_impl")
    gaussians, camera = random_splats(seed)

    def tensor(values):
        return torch.from_numpy(np.asarray(values, np.float64))

    focal_x, focal_y, center_x, center_y = np.asarray(camera.intrinsics, np.float64)
    matrix = np.array([[focal_x, 0, center_x], [0, focal_y, center_y], [0, 0, 1]])
    covariances, _ = gsplat._quat_scale_to_covar_preci(
        tensor(gaussians.quaternions), tensor(jnp.exp(gaussians.log_scales)), compute_preci=False
    )
    radii, means, depths, conics, compensations = (
        values[0]
        for values in gsplat._fully_fused_projection(
            tensor(gaussians.positions),
            covariances,
            tensor(camera.world_to_camera)[None],
            tensor(matrix)[None],
            WIDTH,
            HEIGHT,
            calc_compensations=True,
        )
    )
    plain = jax.jit(project)(gaussians, camera)
    weakened = jax.jit(lambda g, c: project(g, c, antialiased=True))(gaussians, camera)
    front = np.asarray(depths) > 0.01
    assert 0.5 * COUNT < front.sum() < COUNT
    p, q, r = np.moveaxis(np.asarray(plain.whitening, np.float64), -1, 0)
    ours = np.stack([p * p + r * r, -q * r, q * q], axis=-1)
    np.testing.assert_allclose(plain.means[front], means[front], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(plain.depths[front], depths[front], rtol=1e-5)
    np.testing.assert_allclose(ours[front], conics[front], rtol=1e-3, atol=1e-5)
    ratio = np.asarray(weakened.opacities / plain.opacities)
    np.testing.assert_allclose(ratio[front], compensations[front], rtol=1e-3, atol=1e-5)

    columns, rows = tile_grid(WIDTH, HEIGHT)
    lists = bin_splats(plain, width=WIDTH, height=HEIGHT, buffer_capacity=2**15)
    assert int(lists.overflow) == 0
    tiles = np.repeat(np.arange(columns * rows), np.diff(lists.starts))
    listed = set(zip(tiles, np.asarray(lists.splats)[: len(tiles)], strict=True))
    _, keys, members = gsplat._isect_tiles(
        means[None].float(), radii[None], depths[None].float(), TILE_SIZE, columns, rows
    )
    theirs = set(zip((keys.numpy() >> 32) & (2**20 - 1), members.numpy(), strict=True))
    assert listed <= theirs

    x, y = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    for i in np.flatnonzero(front):
        dx, dy = x - float(means[i, 0]), y - float(means[i, 1])
        xx, xy, yy = conics[i].tolist()
        alpha = float(plain.opacities[i]) * np.exp(-0.5 * (xx * dx * dx + yy * dy * dy) - xy * dx * dy)
        hit_y, hit_x = np.nonzero(alpha >= MIN_ALPHA * 1.001)
        needed = set(zip(hit_y // TILE_SIZE * columns + hit_x // TILE_SIZE, [i] * len(hit_x), strict=True))
        assert needed <= listed


def test_the_benchmarks_peer_draws_the_same():
    peer = pytest.importorskip("benchmarks.peer_rendering")
    from benchmarks.rendering import BACKGROUND, ball, cameras_around, mean_square

    gaussians, cameras = ball(200), cameras_around(2, 40)
    fields = ("positions", "log_scales", "quaternions", "opacity_logits", "sh")

    def loss(parameters):
        splats = dataclasses.replace(gaussians, **parameters)
        images = jax.vmap(
            lambda camera: (
                render(splats, camera, background=jnp.asarray(BACKGROUND), buffer_capacity=8000).rgb
            )
        )(cameras)
        return mean_square(images), images

    gradients, images = jax.jit(jax.grad(loss, has_aux=True))({f: getattr(gaussians, f) for f in fields})
    tensors = peer.splat_tensors(gaussians, torch.device("cpu"))
    theirs, _ = peer.render_views(tensors, cameras, with_gradients=True)
    np.testing.assert_allclose(images, theirs, atol=1e-4)
    for name, gradient in gradients.items():
        expected = tensors[name].grad.numpy()
        error = np.linalg.norm(gradient - expected)
        # A round splat's rotation has no effect, so its gradient consists of rounding errors.
        assert error <= (1e-6 if name == "quaternions" else 1e-3 * np.linalg.norm(expected)), name
