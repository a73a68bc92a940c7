"""The networks and the sampler compared with arrays computed by the authors' code."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from ge3d_jax.diffusion.weights.parameters import tensor_name
from ge3d_jax.scenes.start.point_e import model as point_e
from ge3d_jax.scenes.start.point_e import networks, sampler
from ge3d_jax.scenes.start.point_e.model import PointE, StageNoise, read_network
from ge3d_jax.scenes.start.point_e.networks import BaseConfig, UpsamplerConfig, network
from ge3d_jax.scenes.start.point_e.sampler import UPSAMPLING, Stage, make_plan
from tests.scenes.start.point_e import golden
from tests.scenes.start.point_e.golden import arrays, rows

BASE = BaseConfig(width=64, layers=2, heads=4, points=64, text_features=768)
UPSAMPLER = UpsamplerConfig(
    width=64, layers=2, heads=4, points=96, given_points=32, grid_tokens=256, grid_channels=32
)
SMALL_BASE = BaseConfig(width=32, layers=2, heads=4, points=24, text_features=48)
SMALL_UPSAMPLER = UpsamplerConfig(
    width=32, layers=2, heads=4, points=72, given_points=24, grid_tokens=16, grid_channels=24
)
RUNS = {"run_churn": 3.0, "run_no_churn": 0.0}
TOLERANCE = 1e-4


def read(config, name, prefix="weights/"):
    return read_network(config, golden.stored(golden.weights(name, prefix)), golden.FOLDER)


@functools.cache
def base():
    return read(BASE, "textvec")


_apply_base = jax.jit(lambda parameters, *inputs: network(BASE).apply({"params": parameters}, *inputs))
_apply_upsampler = jax.jit(
    lambda parameters, *given: network(UPSAMPLER).apply({"params": parameters}, *given)
)


def largest(value, expected):
    return float(np.max(np.abs(np.asarray(value) - expected)))


@pytest.mark.parametrize("dropped", [False, True])
def test_the_base_network_is_point_e_s(dropped):
    stored = arrays("textvec")
    text, ending = stored["in/text_feature"] * (not dropped), "_dropped" * dropped
    output = _apply_base(base(), rows(stored["in/x"]), stored["in/t"].astype(np.int32), text)
    assert largest(output[..., :6], rows(stored[f"out/epsilon{ending}"])) < TOLERANCE
    assert largest(output[..., 6:], rows(stored[f"out/variance{ending}"])) < TOLERANCE


def test_the_time_s_sinusoid_is_point_e_s():
    stored = arrays("textvec")
    sinusoid = networks.time_sinusoid(jnp.asarray(stored["in/t"], jnp.int32), 64)
    # Some of PyTorch's float32 frequencies are off by one ulp, which is multiplied by times up to 803.
    assert largest(sinusoid, stored["mid/time_sinusoid"]) < 6e-5


def test_the_upsampler_is_point_e_s_without_a_picture_and_with_one():
    stored = arrays("upsample")
    parameters = read(UPSAMPLER, "upsample")
    inputs = rows(stored["in/x"]), stored["in/t"].astype(np.int32), rows(stored["in/low_res"])
    for name, grid in (("out", None), ("image", np.moveaxis(stored["image/in_embeddings"], 1, 2))):
        output = _apply_upsampler(parameters, *inputs, *([] if grid is None else [grid]))
        assert largest(output[..., :6], rows(stored[f"{name}/epsilon"])) < TOLERANCE
        assert largest(output[..., 6:], rows(stored[f"{name}/variance"])) < TOLERANCE


def test_guided_evaluations_are_point_e_s():
    stored = arrays("textvec")
    text = jnp.asarray(stored["in/text_feature"])
    condition = jnp.concatenate([text, jnp.zeros_like(text)])
    sigmas = stored["guided/in_sigma"].astype(np.float64)
    levels = sampler.levels(sigmas, sampler.alphas_cumprod("cosine"))
    assert np.array_equal(levels.time, stored["guided/t_index"])

    @jax.jit
    def guided(parameters, x, level):
        def predict(points, times):
            return _apply_base(parameters, points, times, condition)[..., :6]

        return sampler.denoise(predict, x, level, scale=3.0, guided=True)

    for index, sigma in enumerate(sigmas):
        level = jax.tree.map(lambda leaf, index=index: leaf[index], levels)
        clean = guided(base(), rows(stored["guided/in_x"][index]), level)
        assert largest(clean, rows(stored["guided/x0"][index])) < TOLERANCE * max(1.0, sigma)


@pytest.mark.parametrize(("stage", "name"), [(Stage(), "base"), (UPSAMPLING, "upsample")])
def test_the_published_tables_are_point_e_s(stage, name):
    stored = {
        key.removeprefix(f"published/{name}/"): value
        for key, value in arrays("sampler").items()
        if key.startswith(f"published/{name}/")
    }
    np.testing.assert_allclose(sampler.betas(stage.schedule), stored["betas"], rtol=1e-12)
    np.testing.assert_allclose(sampler.alphas_cumprod(stage.schedule), stored["alphas_cumprod"], rtol=1e-12)
    np.testing.assert_allclose(stage.sigmas(), stored["sigmas"], rtol=1e-5)
    plan = make_plan(stage)
    # In evaluation order; the last step has no evaluation at its end.
    levels = [
        np.stack([plan.first.sigma, plan.second.sigma], 1),
        np.stack([plan.first.time, plan.second.time], 1),
    ]
    sigma, times = (level.reshape(-1)[:-1] for level in levels)
    np.testing.assert_allclose(sigma, stored["sigma_calls"], rtol=1e-5)
    assert np.array_equal(times, stored["t_index"]) and np.array_equal(times, stored["t_index_float64"])


@functools.cache
def sampled(run):
    """Our results for both stages of a golden run."""
    stored, churn = arrays("sampler"), RUNS[run]
    stages = {
        "base": Stage(steps=8, churn=churn, guidance=3.0),
        "upsample": Stage(schedule="linear", steps=8, sigma_max=160.0, churn=0.0, guidance=0.0),
    }
    model = PointE(
        base=read(SMALL_BASE, "sampler", "base/weights/"),
        upsampler=read(SMALL_UPSAMPLER, "sampler", "upsample/weights/"),
        base_config=SMALL_BASE,
        upsampler_config=SMALL_UPSAMPLER,
        base_stage=stages["base"],
        upsampler_stage=stages["upsample"],
    )
    noise = {
        name: StageNoise(
            jnp.asarray(rows(stored[f"noise/{name}/initial"])),
            jnp.asarray(rows(stored[f"noise/{name}/per_step"])),
        )
        for name in stages
    }
    text = point_e.unit_features(jnp.asarray(stored["in/text_feature_raw"]))
    assert largest(text, stored["mid/text_feature"]) < 1e-6
    first = point_e.sample_base(
        model.base, text, make_plan(stages["base"]), noise["base"], config=SMALL_BASE, guided=True
    )
    given = point_e.to_user_units(first.clean[-1])
    more = point_e.sample_upsampler(
        model.upsampler, given, make_plan(stages["upsample"]), noise["upsample"], config=SMALL_UPSAMPLER
    )
    points = point_e.sample_points(model, text, noise["base"], noise["upsample"])
    return stages, {"base": first, "upsample": more}, np.asarray(given), points


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("name", ["base", "upsample"])
def test_every_state_of_the_sampler_is_point_e_s(run, name):
    stored = {
        key.removeprefix(f"{run}/{name}/"): value
        for key, value in arrays("sampler").items()
        if key.startswith(f"{run}/{name}/")
    }
    stages, ways, _, _ = sampled(run)
    stage, way = stages[name], ways[name]
    np.testing.assert_allclose(stage.sigmas(), stored["sigma"], rtol=1e-5)
    np.testing.assert_allclose(stage.churned(), stored["sigma_hat"], rtol=1e-5)
    plan = make_plan(stage)
    times = np.stack([plan.first.time, plan.second.time], 1).reshape(-1)[:-1]
    assert np.array_equal(times, stored["t_index"])
    for step in (0, 1, 4, 7):
        state, clean = rows(stored[f"x_{step}"]), rows(stored[f"x0_{step}"])
        assert largest(way.states[step], state) < TOLERANCE + 1e-5 * np.max(np.abs(state)), step
        assert largest(way.clean[step], clean) < (1e-3 if stored["sigma_hat"][step] > 10 else TOLERANCE), step
    assert largest(way.last, rows(stored["x_final"])) < TOLERANCE
    seen = way.states[0] / np.sqrt(plan.first.sigma[0] ** 2 + 1)
    assert largest(seen, rows(stored["first_model_input"])) < TOLERANCE


@pytest.mark.parametrize("run", RUNS)
def test_clouds_are_point_e_s(run):
    stored = arrays("sampler")
    _, _, given, points = sampled(run)
    for value, name in ((given, "base_points"), (points, "points")):
        expected = rows(stored[f"{run}/{name}"])
        assert largest(value[..., :3], expected[..., :3]) < TOLERANCE
        assert largest(value[..., 3:], expected[..., 3:]) < 0.06
    expected = rows(stored[f"{run}/points"])
    # Colors close to a half may round either way.
    halves = np.abs(expected[..., 3:] % 1.0 - 0.5) < 0.06
    for cloud, coords, rgb, half in zip(
        point_e.to_clouds(points), stored[f"{run}/coords"], stored[f"{run}/rgb"], halves, strict=True
    ):
        assert largest(cloud.positions, coords) < TOLERANCE
        assert np.all(np.abs(cloud.colors - rgb) * 255 <= np.where(half, 1.001, 1e-3))


@pytest.mark.parametrize(
    ("name", "config"), [("base40M-textvec", BaseConfig()), ("upsample", UpsamplerConfig())]
)
def test_full_size_networks_have_the_published_names_and_shapes(name, config):
    names = golden.full_names()
    shapes = {
        tensor_name(path): list(leaf.shape[::-1] if path[-1] == "kernel" else leaf.shape)
        for path, leaf in flatten_dict(networks.parameter_shapes(config)).items()
    }
    shapes |= {buffer: [6] for buffer in names["counts"][name]["buffers"]}
    assert shapes == names[name]
    counted = sum(int(np.prod(shape)) for key, shape in shapes.items() if not key.startswith("channel_"))
    assert counted == names["counts"][name]["parameters"]
    published, diffusion = names["model_config"][name], names["diffusion_config"][name]
    assert (published["width"], published["layers"], published["heads"]) == (
        config.width,
        config.layers,
        config.heads,
    )
    assert published["n_ctx"] == config.points
    assert tuple(diffusion["channel_scales"]) == networks.CHANNEL_SCALES
    assert tuple(diffusion["channel_biases"]) == networks.CHANNEL_BIASES


def test_the_stages_are_the_published_ones():
    names = golden.full_names()
    pipeline = names["text_pipeline"]
    for index, (stage, name) in enumerate([(Stage(), "base40M-textvec"), (UPSAMPLING, "upsample")]):
        told = {
            "steps": "karras_steps", "sigma_min": "sigma_min", "sigma_max": "sigma_max",
            "churn": "s_churn", "guidance": "guidance_scale",
        }  # fmt: skip
        assert [getattr(stage, ours) for ours in told] == [
            pipeline[theirs][index] for theirs in told.values()
        ]
        assert stage.schedule == names["diffusion_config"][name]["schedule"]
        assert sampler.STEPS == names["diffusion_config"][name]["timesteps"]
