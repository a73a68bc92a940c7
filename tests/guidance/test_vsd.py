"""VSD compared with threestudio's runs and with CSD; its learned part, and its two separate gradients."""

import dataclasses
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.random import Draws
from ge3d_jax.diffusion.denoiser import Denoiser, ViewTexts
from ge3d_jax.diffusion.schedule import NoiseSchedule, add_noise, velocity
from ge3d_jax.guidance.base import DrawKeys, Progress, SeenViews
from ge3d_jax.guidance.vsd import VSD, camera_numbers, output_errors
from ge3d_jax.training.presets import configured
from tests.guidance import golden

CASES = ("a", "b")
VIEWS = 2
PROGRESS = Progress(0, 25_000)
# For float32: the largest difference relative to the largest value.
TOLERANCE = 5e-5
WIDTH = 6


def _path(name):
    """Path of the learned parameter with this PyTorch name."""
    modules = re.sub(r"\.(\d+)", r"_\1", name).replace("to_out_lora", "to_out_0_lora")
    *path, leaf = re.split(r"[/.]", modules.replace("_lora.", ".").removesuffix(".weight"))
    return (*path, leaf, "kernel") if leaf.startswith("linear") else (*path, leaf)


@pytest.fixture(scope="module")
def stored():
    """The learned parameters of both cases, and their paths in file order."""
    arrays, flat = golden.load_tables("vsd"), {}
    rest = arrays["parameters_times_256"].astype(np.float32) / 256
    for name, (rows, columns) in zip(arrays["parameter_names"], arrays["parameter_shapes"], strict=True):
        value, rest = np.split(rest, [rows * max(columns, 1)])
        flat[_path(str(name))] = jnp.asarray(value.reshape(rows, columns).T if columns else value)
    return unflatten_dict(flat), list(flat)


def _published(name):
    """A case's inputs of the loss; a single view is duplicated so that all cases share a compiled program."""
    case = golden.load_case("vsd", name)
    times = VIEWS // len(case.latents)

    def twice(array):
        return jnp.concatenate([jnp.asarray(array)] * times)

    def settings(key):
        return twice(np.asarray(case.settings[key]))

    text = case.texts(negative="")
    # The authors use OpenGL's axes.
    seen = golden.see(twice(case.latents), settings("camera_to_world") @ np.diag([1.0, -1.0, -1.0, 1.0]))
    drawn = Draws(
        shared={"without_cameras": jnp.asarray(case.settings["camera_zeroed"])},
        per_view={
            "t": settings("t"),
            "noise": twice(case["noise"]),
            "t_lora": settings("t_lora"),
            "noise_lora": twice(case["noise_lora"]),
        },
    )
    views = {name: twice(getattr(text, name)) for name in ("positive", "avoided", "weights")}
    return seen, dataclasses.replace(text, **views), drawn


@pytest.fixture(scope="module")
def evaluate():
    """(learned, seen, text, drawn) → both gradients and the metrics, for the bundled network."""
    model = golden.bundled_model()
    denoiser = Denoiser(model, model.schedule, VIEWS)

    def scalar(learned, latents, seen, text, drawn):
        seen = dataclasses.replace(seen, latents=latents)
        return VSD()(learned, seen, text, drawn, denoiser, PROGRESS)

    compiled = jax.jit(jax.grad(scalar, argnums=(0, 1), has_aux=True))
    return lambda learned, seen, text, drawn: compiled(learned, seen.latents, seen, text, drawn)


@pytest.fixture(scope="module")
def found(evaluate, stored):
    """Per case: the gradients of the learned parameters and of z, and the metrics."""
    results = {}
    for name in CASES:
        (learned, latents), numbers = evaluate(stored[0], *_published(name))
        results[name] = SimpleNamespace(learned=flatten_dict(learned), latents=latents, numbers=numbers)
    return results


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_prolific_dreamer_s(name, found):
    case = golden.load_case("vsd", name)
    views = len(case.latents)
    got = np.asarray(found[name].latents)[:views] * VIEWS / views
    assert golden.largest_difference(got, case["gradient"]) < TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_both_losses_are_prolific_dreamer_s(name, found):
    settings = golden.load_case("vsd", name).settings
    assert float(found[name].numbers["loss"].mean()) == pytest.approx(settings["loss_vsd"], rel=1e-5)
    # Case b trains at t = 999, where √ᾱ is smallest.
    assert float(found[name].numbers["loss_lora"].mean()) == pytest.approx(settings["loss_lora"], rel=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_what_is_learned_has_prolific_dreamer_s_gradients(name, found, stored):
    case, gradients, order = golden.load_case("vsd", name), found[name].learned, stored[1]
    norms = [np.linalg.norm(gradients[path]) for path in order]
    np.testing.assert_allclose(norms, case["parameter_gradient_norms"], rtol=TOLERANCE)
    if name == "a":
        rest = case["parameter_gradients"]
        for path in order:
            gradient = np.asarray(gradients[path]).T
            # The file has only the first rows of the largest gradient.
            gradient = gradient[:8] if path == ("camera", "linear_2", "kernel") else gradient
            wanted, rest = np.split(rest, [gradient.size])
            assert golden.largest_difference(gradient.ravel(), wanted) < TOLERANCE, path
        assert not rest.size


def test_a_few_steps_of_its_optimizer_lower_its_loss(evaluate, stored):
    learned, case = stored[0], _published("a")
    optimizer = VSD(learning_rate=1e-3).optimizer()
    state, errors = optimizer.init(learned), []

    @jax.jit
    def step(gradients, state, learned):
        updates, state = optimizer.update(gradients, state, learned)
        return optax.apply_updates(learned, updates), state

    for _ in range(4):
        (gradients, _), numbers = evaluate(learned, *case)
        learned, state = step(gradients, state, learned)
        errors.append(float(numbers["loss_lora"].mean()))
    assert np.all(np.diff(errors) < 0), errors


def test_its_optimizer_is_adamw_as_pytorch_has_it():
    parameter, gradients = 0.5, (3e-9, -2e-9)
    optimizer = VSD().optimizer()
    state, expected, first, second = optimizer.init(jnp.float32(parameter)), parameter, 0.0, 0.0
    value = jnp.float32(parameter)
    for step, gradient in enumerate(gradients, start=1):
        updates, state = optimizer.update(jnp.float32(gradient), state, value)
        value = optax.apply_updates(value, updates)
        first, second = 0.9 * first + 0.1 * gradient, 0.99 * second + 0.01 * gradient**2
        direction = first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.99**step)) + 1e-15)
        expected = expected * (1 - 1e-4 * 0.01) - 1e-4 * direction
    assert float(value) == pytest.approx(expected, rel=3e-7)


def _smooth(model, x, t, text, adapter=None):
    """A minimal network that depends on all of its inputs, and on every part of an adapter."""
    level = 0.1 + jnp.broadcast_to(t, x.shape[:1]).astype(x.dtype) / 1000
    shift = jnp.sum(text * model["text"], axis=(1, 2)) * level
    if adapter is not None:
        shift += jnp.sum(adapter.time_offset * model["time"], axis=1)
    squeezed = jnp.tanh(x + shift[:, None, None, None])
    return squeezed if adapter is None else squeezed + (x @ adapter.lora["down"]) @ adapter.lora["up"]


def _situation(count=4, *, avoided=0):
    """A small network with all inputs of a call, in the current default precision."""
    # NumPy's generator, because compiling JAX's would take longer than everything else here.
    rng = np.random.default_rng(3)

    def random(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.result_type(float))

    def times(first, last):
        return jnp.asarray(rng.integers(first, last, count), jnp.int32)

    shape, tokens = (count, 4, 4, 4), (3, 5)
    model = {"text": random(*tokens), "time": random(WIDTH)}
    alphas = jnp.cumprod(1 - jnp.linspace(1e-4, 0.02, 1000, dtype=jnp.result_type(float)))
    learned = {
        "lora": {"down": random(4, 2), "up": random(2, 4)},
        "camera": {
            "linear_1": {"kernel": 0.1 * random(16, WIDTH), "bias": random(WIDTH)},
            "linear_2": {"kernel": 0.1 * random(WIDTH, WIDTH), "bias": random(WIDTH)},
        },
    }
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, :3, 3] = np.arange(3 * count).reshape(count, 3) / count
    return SimpleNamespace(
        learned=learned,
        seen=golden.see(random(*shape), poses),
        text=ViewTexts(
            positive=random(count, *tokens),
            avoided=random(count, avoided, *tokens),
            weights=-jnp.abs(random(count, avoided)),
            negative=random(*tokens),
            empty=random(*tokens),
            plain=random(*tokens),
        ),
        drawn=Draws(
            shared={"without_cameras": jnp.asarray(False)},
            per_view={
                "t": times(20, 981),
                "noise": random(*shape),
                "t_lora": times(0, 1000),
                "noise_lora": random(*shape),
            },
        ),
        denoiser=Denoiser(model, NoiseSchedule(alphas), count, _smooth),
    )


@jax.jit
def _compiled(learned, latents, seen, text, drawn, denoiser):
    def scalar(learned, latents):
        return VSD()(learned, dataclasses.replace(seen, latents=latents), text, drawn, denoiser, PROGRESS)

    return jax.grad(scalar, argnums=(0, 1), has_aux=True)(learned, latents)


def _gradients(now):
    """The gradients of the learned parameters and of z, and the metrics."""
    (learned, latents), numbers = _compiled(
        now.learned, now.seen.latents, now.seen, now.text, now.drawn, now.denoiser
    )
    return learned, latents, numbers


def _largest(tree):
    return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


def _assert_close(value, expected, tolerance):
    for got, wanted in zip(jax.tree.leaves(value), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance * max(_largest(wanted), 1e-12))


def test_with_a_lora_that_does_nothing_and_one_prompt_it_is_classifier_score_distillation():
    with jax.enable_x64():
        now = _situation()
        now.learned["lora"]["up"] *= 0
        now.learned["camera"]["linear_2"] = jax.tree.map(jnp.zeros_like, now.learned["camera"]["linear_2"])
        now.text = now.text.replace(positive=jnp.tile(now.text.plain, (4, 1, 1)))
        _, gradient, _ = _gradients(now)
        t = now.drawn.per_view["t"]
        x = add_noise(now.denoiser.schedule, now.seen.latents, now.drawn.per_view["noise"], t)
        text, without = now.denoiser.predict_for(x, t, now.text.plain, now.text.negative)
        weights = (1 - now.denoiser.schedule.alphas_cumprod[t])[:, None, None, None]
        # (s − 1) of s = 7.5; four views.
        expected = 6.5 * weights * (text - without) / 4
        assert gradient.dtype == jnp.float64
        assert golden.largest_difference(gradient, expected) < 1e-10


def test_neither_gradient_reaches_into_the_other():
    with jax.enable_x64():
        now = _situation()
        learned, latents, _ = _gradients(now)
        # An input used by only one of the gradients changes only that one.
        for name in ("t", "noise", "t_lora", "noise_lora"):
            other = _situation()
            other.drawn.per_view[name] = other.drawn.per_view[name][::-1]
            changed_learned, changed_latents, _ = _gradients(other)
            changed, same = (changed_learned, learned), (changed_latents, latents)
            if name in ("t", "noise"):
                changed, same = same, changed
            assert _largest(jax.tree.map(jnp.subtract, *changed)) > 1e-3, name
            _assert_close(*same, 1e-12)


def test_what_it_hands_over_is_what_it_says():
    with jax.enable_x64():
        now = _situation(avoided=2)
        schedule, drawn = now.denoiser.schedule, now.drawn.per_view

        def network(learned, x, t, cameras):
            return VSD().predict_learned(learned, x, t, cameras, now.text, now.denoiser)

        cameras = camera_numbers(now.seen.cameras)
        x = add_noise(schedule, now.seen.latents, drawn["noise"], drawn["t"])
        guided = now.denoiser.branches(x, drawn["t"], now.text, now.text.negative).guided(7.5)
        difference = guided - network(now.learned, x, drawn["t"], cameras)
        weights = (1 - schedule.alphas_cumprod[drawn["t"]])[:, None, None, None]

        def own_loss(learned, cameras):
            x = add_noise(schedule, now.seen.latents, drawn["noise_lora"], drawn["t_lora"])
            epsilon = network(learned, x, drawn["t_lora"], cameras)
            return jnp.mean((epsilon - drawn["noise_lora"]) ** 2)

        for without_cameras in (False, True):
            now.drawn.shared["without_cameras"] = jnp.asarray(without_cameras)
            learned, latents, numbers = _gradients(now)
            # Dropping the cameras affects only the learned network.
            _assert_close(latents, weights * difference / 4, 1e-12)
            shown = jnp.zeros_like(cameras) if without_cameras else cameras
            expected, gradient = jax.value_and_grad(own_loss)(now.learned, shown)
            _assert_close(learned, gradient, 1e-12)
            assert float(numbers["loss_lora"].mean()) == pytest.approx(float(expected), rel=1e-12)
            first_layer = learned["camera"]["linear_1"]["kernel"]
            assert (_largest(first_layer) == 0) == without_cameras


@pytest.mark.parametrize("at_a_time", [1, 2])
def test_views_in_turn_are_all_at_once(at_a_time):
    with jax.enable_x64():
        now = _situation(avoided=2)
        expected = _gradients(now)
        now.denoiser = now.denoiser.replace(views_at_a_time=at_a_time)
        _assert_close(_gradients(now), expected, 1e-12)


def test_views_in_turn_keep_little_for_the_gradient():
    now = _situation(8)

    def kept(at_a_time):
        denoiser = now.denoiser.replace(views_at_a_time=at_a_time)

        def scalar(learned):
            return VSD()(learned, now.seen, now.text, now.drawn, denoiser, PROGRESS)[0]

        pull_back = jax.eval_shape(lambda learned: jax.vjp(scalar, learned)[1], now.learned)
        # Excluding the network's inputs and outputs.
        size = now.seen.latents.size
        return (sum(leaf.size for leaf in jax.tree.leaves(pull_back)) - 2 * size) / size

    # Processing all views at once keeps twice as much in JAX 0.12, and three times as much in 0.10.
    assert kept(1) < 0.6 * kept(8)


def test_shares_of_two_devices_are_the_whole():
    with jax.enable_x64():
        whole = _situation()
        learned, latents, _ = _gradients(whole)
        parts = []
        for own in (slice(0, 2), slice(2, 4)):
            part = _situation()
            part.seen = SeenViews(
                whole.seen.latents[own], jax.tree.map(lambda leaf, own=own: leaf[own], whole.seen.cameras), 4
            )
            views = {name: getattr(whole.text, name)[own] for name in ("positive", "avoided", "weights")}
            part.text = whole.text.replace(**views)
            part.drawn = Draws(
                whole.drawn.shared, {name: value[own] for name, value in whole.drawn.per_view.items()}
            )
            part.denoiser = whole.denoiser.replace(views_at_a_time=2)
            parts.append(_gradients(part))
        _assert_close(jax.tree.map(jnp.add, parts[0][0], parts[1][0]), learned, 1e-12)
        _assert_close(jnp.concatenate([parts[0][1], parts[1][1]]), latents, 1e-12)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_error_is_of_what_the_network_gives(kind):
    rng = np.random.default_rng(0)
    z, noise, output = (jnp.asarray(rng.normal(size=(4, 8, 8, 4)), jnp.float32) for _ in range(3))
    schedule = NoiseSchedule(golden.schedule().alphas_cumprod, kind)
    t = jnp.array([0, 15, 611, 999])
    wanted, epsilon = noise, output
    if kind == "v_prediction":
        wanted = velocity(schedule, z, noise, t)
        signal = schedule.alphas_cumprod[t][:, None, None, None]
        epsilon = jnp.sqrt(signal) * output + jnp.sqrt(1 - signal) * add_noise(schedule, z, noise, t)
    expected = np.mean((np.asarray(output, np.float64) - wanted) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(output_errors(schedule, epsilon, noise, t), expected, rtol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_cameras_are_told_as_threestudio_tells_them(name):
    seen, _, _ = _published(name)
    expected = np.reshape(golden.load_case("vsd", name).settings["camera_to_world"], (-1, 16))
    np.testing.assert_allclose(camera_numbers(seen.cameras)[: len(expected)], expected, atol=1e-6)


def test_times_are_drawn_for_each_view_and_end_earlier_later_on():
    loss, shape = VSD(camera_dropout=0.3), (400, 1, 1, 4)
    draw = jax.jit(lambda seed, done: loss.draw(keys_of(seed), Progress(done, 25_000), shape))

    def keys_of(seed):
        return DrawKeys(*jax.random.split(jax.random.key(seed), 3))

    drawn = {done: [draw(seed, done) for seed in range(100)] for done in (5000, 5001)}
    for done, latest in ((5000, 980), (5001, 500)):
        times = np.concatenate([each.per_view["t"] for each in drawn[done]])
        assert (times.min(), times.max()) == (20, latest)
        assert times.mean() == pytest.approx((20 + latest) / 2, rel=0.01)
        learned = np.concatenate([each.per_view["t_lora"] for each in drawn[done]])
        assert (learned.min(), learned.max()) == (0, 999)
    without = np.mean([each.shared["without_cameras"] for each in drawn[5000] + drawn[5001]])
    assert 0.15 < without < 0.45
    first, other = drawn[5000][:2]
    noises = [np.ravel(each.per_view[name]) for each in (first, other) for name in ("noise", "noise_lora")]
    noises.append(np.ravel(first.per_view["t"]))
    assert np.abs(np.corrcoef(noises[:4]) - np.eye(4)).max() < 0.1


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"guidance.rank": 0}, "rank is 0, which leaves LoRA nothing to learn; give at least 1"),
        ({"guidance.times.high": 1000}, "times.high"),
        ({"guidance.times.late_high": 10}, "times.late_high"),
        ({"guidance.learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"guidance.camera_dropout": 1.5}, "camera_dropout is 1.5; give a share"),
        ({"flip_probability": 0.5}, "flip_probability is 0.5, .* depends on the cameras"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        configured("toybox", guidance="vsd", overrides=settings)


@pytest.mark.parametrize("preset", ["paper", "toybox"])
def test_its_presets_go_with_the_rest(preset):
    config = configured(preset, guidance="vsd")
    assert isinstance(config.guidance, VSD) and config.flip_probability == 0
    assert config.guidance.times.late_from == pytest.approx(config.iterations / 5, abs=1)
    assert config.guidance.latest_time == 999
