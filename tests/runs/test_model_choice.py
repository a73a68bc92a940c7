"""Choice of a model: early checks, its description, and the same choice from that description."""

import json

import pytest

from ge3d_jax.core.devices import Target, compiling_for
from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.networks.kernel_order import OrderedKernel
from ge3d_jax.runs.model_choice import ModelChoice
from ge3d_jax.toybox import model_folder


def test_what_describes_a_choice_asks_for_the_same():
    choice = ModelChoice("somewhere", "float32", (("style.safetensors", 0.5),), ("cat.safetensors",))
    described = json.loads(json.dumps(choice.describe()))
    assert described == {
        "model": "somewhere",
        "dtype": "float32",
        "loras": [["style.safetensors", 0.5]],
        "textual_inversions": ["cat.safetensors"],
    }
    assert ModelChoice.described(described) == choice
    assert ModelChoice.described(ModelChoice(dtype="float32").describe()) == ModelChoice("toybox", "float32")
    assert ModelChoice.described({}) == ModelChoice()


def test_a_place_stands_for_a_choice():
    assert ModelChoice.of(None) == ModelChoice()
    assert ModelChoice.of("here").model == "here"
    choice = ModelChoice(dtype="float32")
    assert ModelChoice.of(choice) is choice


def test_the_bundled_model_is_found():
    assert ModelChoice().check() == model_folder()


def test_a_run_stores_kernels_as_the_device_reads_them():
    choice = ModelChoice("toybox64", "float32")
    place = choice.check()

    def kernels():
        model = choice.load(place)
        return [part["conv_out"]["kernel"] for part in (model.unet_params, model.vae_params["decoder"])]

    with compiling_for(Target("gpu", (9, 0))):
        assert [kernel.axes for kernel in kernels()] == [(3, 0, 1, 2)] * 2
    assert not any(isinstance(kernel, OrderedKernel) for kernel in kernels())


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        (ModelChoice("missing"), "missing"),
        (ModelChoice(dtype="float16"), "'float16' does not exist"),
        (ModelChoice(loras=[("missing.safetensors", 1.0)]), "missing.safetensors is missing"),
        (ModelChoice(textual_inversions=["cat.bin"]), "cat.bin"),
    ],
)
def test_mistakes_are_found_before_anything_is_loaded(choice, says):
    with pytest.raises(UserError, match=says):
        choice.check()
