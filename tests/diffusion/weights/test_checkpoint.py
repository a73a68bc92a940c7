"""Model folders: round trips, old and new tensor names, and specific error messages."""

import json
import shutil
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.serialization import msgpack_serialize
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.weights.checkpoint import (
    TEXT_WEIGHTS,
    UNET_WEIGHTS,
    VAE_WEIGHTS,
    load_model,
    save_model,
)
from ge3d_jax.diffusion.weights.parameters import tensor_name
from tests.reference_models import tiny_model

PARAMETERS = ("unet_params", "vae_params", "text_params")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A random model and its folder; tests that modify the folder copy it."""
    folder = tmp_path_factory.mktemp("saved")
    model = tiny_model(folder / "words", "v_prediction")
    save_model(folder / "model", model)
    return model, folder / "model"


@pytest.fixture
def folder(saved, tmp_path):
    """A copy to damage."""
    shutil.copytree(saved[1], tmp_path / "model")
    return tmp_path / "model"


def _rewrite(file, change):
    """Replace the tensors in `file` by the result of `change`."""
    save_file({name: np.ascontiguousarray(value) for name, value in change(load_file(file)).items()}, file)


def _assert_same_parameters(first, second):
    for name in PARAMETERS:
        chex.assert_trees_all_equal(getattr(first, name), getattr(second, name))


def test_loading_returns_what_was_saved(saved):
    model, folder = saved
    loaded = load_model(folder)
    _assert_same_parameters(model, loaded)
    for name in ("unet", "vae", "text_encoder", "scaling_factor", "scheduler_config"):
        assert getattr(loaded, name) == getattr(model, name)
    chex.assert_trees_all_equal(loaded.schedule, model.schedule)
    assert loaded.schedule.prediction_type == "v_prediction"
    prompt = "the red robot with a hat"
    assert loaded.tokenizer(prompt)["input_ids"] == model.tokenizer(prompt)["input_ids"]


def test_saving_again_gives_the_same_bytes(saved, tmp_path):
    model, folder = saved
    save_model(tmp_path, load_model(folder))
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    for file in files:
        assert (folder / file).read_bytes() == (tmp_path / file).read_bytes(), file


def test_the_model_passes_through_jit(saved):
    model, folder = saved
    doubled = jax.jit(lambda model: jax.tree.map(lambda leaf: 2 * leaf, model))(model)
    assert doubled.unet == model.unet and doubled.tokenizer is model.tokenizer


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (
            ("down_blocks_0", "resnets_1", "conv1", "kernel"),
            "down_blocks.0.resnets.1.conv1.weight",
        ),
        (
            ("mid_block", "attentions_0", "transformer_blocks_0", "attn1", "to_out_0", "bias"),
            "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0.bias",
        ),
        (("ff", "net_0", "proj", "kernel"), "ff.net.0.proj.weight"),
        (("time_embedding", "linear_1", "kernel"), "time_embedding.linear_1.weight"),
        (("encoder", "layers_10", "layer_norm1", "scale"), "encoder.layers.10.layer_norm1.weight"),
        (("embeddings", "token_embedding", "embedding"), "embeddings.token_embedding.weight"),
    ],
)
def test_names_follow_diffusers(path, name):
    assert tensor_name(path) == name


def test_reads_half_precision_as_float32(folder, saved):
    for file in (UNET_WEIGHTS, VAE_WEIGHTS, TEXT_WEIGHTS):
        _rewrite(
            folder / file, lambda tensors: {name: value.astype(np.float16) for name, value in tensors.items()}
        )
    loaded = load_model(folder)
    for name in PARAMETERS:
        expected = jax.tree.map(
            lambda leaf: np.asarray(leaf).astype(np.float16).astype(np.float32), getattr(saved[0], name)
        )
        chex.assert_trees_all_equal(getattr(loaded, name), expected)


def test_everything_has_the_requested_dtype(folder, saved):
    loaded = load_model(folder, dtype=jnp.bfloat16)
    for name in PARAMETERS:
        expected = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), getattr(saved[0], name))
        chex.assert_trees_all_equal(getattr(loaded, name), expected)
        chex.assert_trees_all_equal_dtypes(getattr(loaded, name), expected)
    assert {loaded.unet.dtype, loaded.vae.dtype, loaded.text_encoder.dtype} == {jnp.bfloat16}


@pytest.mark.parametrize("stored", [np.float16, jnp.bfloat16, np.float32])
def test_half_precision_variants(folder, saved, stored):
    """Half-precision files are used for bfloat16, or if no others exist; their dtype does not matter."""
    kernel = np.asarray(saved[0].unet_params["conv_in"]["kernel"])
    for file in (UNET_WEIGHTS, VAE_WEIGHTS, TEXT_WEIGHTS):
        half = folder / file.replace(".safetensors", ".fp16.safetensors")
        shutil.copy(folder / file, half)
        _rewrite(half, lambda tensors: {name: (2 * value).astype(stored) for name, value in tensors.items()})
    whole, half = load_model(folder), load_model(folder, dtype=jnp.bfloat16)
    _assert_same_parameters(whole, saved[0])
    doubled = (2 * kernel).astype(stored)
    np.testing.assert_array_equal(half.unet_params["conv_in"]["kernel"], doubled.astype(jnp.bfloat16))
    for file in (UNET_WEIGHTS, VAE_WEIGHTS, TEXT_WEIGHTS):
        (folder / file).unlink()
    np.testing.assert_array_equal(load_model(folder).unet_params["conv_in"]["kernel"], doubled)


def test_reads_shards(folder, saved):
    for file, variant in ((UNET_WEIGHTS, ""), (TEXT_WEIGHTS, ".fp16")):
        tensors = load_file(folder / file)
        (folder / file).unlink()
        weight_map = {}
        for number, name in enumerate(sorted(tensors)):
            weight_map[name] = f"part-{number % 3}.safetensors"
        for shard in sorted(set(weight_map.values())):
            part = {name: value for name, value in tensors.items() if weight_map[name] == shard}
            save_file(part, (folder / file).with_name(shard))
        (folder / f"{file}.index{variant}.json").write_text(json.dumps({"weight_map": weight_map}))
    _assert_same_parameters(load_model(folder), saved[0])
    (folder / "unet/part-1.safetensors").unlink()
    with pytest.raises(UserError, match="unet/part-1.safetensors is missing"):
        load_model(folder)


def test_old_files_are_refused_with_the_command_that_converts_them(folder):
    for file in (UNET_WEIGHTS, VAE_WEIGHTS, TEXT_WEIGHTS):
        (folder / file).rename((folder / file).with_suffix(".bin"))
    with pytest.raises(UserError, match=f"lacks {UNET_WEIGHTS}.*python -c .*save_pretrained"):
        load_model(folder)


def test_a_folder_with_a_single_file_says_how_to_use_it(tmp_path):
    (tmp_path / "v1-5.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="no model_index.json.*give .*v1-5.safetensors"):
        load_model(tmp_path)


def test_reads_the_old_names_of_the_vae_attention(folder, saved):
    old_names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def age(tensors):
        aged = {}
        for name, value in tensors.items():
            for new, old in old_names.items():
                if f"attentions.0.{new}." in name:
                    name = name.replace(new, old)
                    # Old files have 1×1 convolutions instead, here in the encoder.
                    value = value[:, :, None, None] if value.ndim == 2 and "encoder" in name else value
            aged[name] = value
        return aged

    _rewrite(folder / VAE_WEIGHTS, age)
    assert "decoder.mid_block.attentions.0.proj_attn.weight" in load_file(folder / VAE_WEIGHTS)
    _assert_same_parameters(saved[0], load_model(folder))


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_reads_the_text_encoder_with_and_without_prefix(folder, saved, prefix):
    def rename(tensors):
        assert all(name.startswith("text_model.") for name in tensors)
        renamed = {prefix + name.removeprefix("text_model."): value for name, value in tensors.items()}
        return {**renamed, f"{prefix}embeddings.position_ids": np.arange(12)[None]}

    _rewrite(folder / TEXT_WEIGHTS, rename)
    _assert_same_parameters(saved[0], load_model(folder))


def _without(name):
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def _with(name, value):
    return lambda tensors: {**tensors, name: value}


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        (UNET_WEIGHTS, _without("mid_block.resnets.1.conv2.weight"), ["(32, 32, 3, 3)"]),
        (VAE_WEIGHTS, _without("encoder.mid_block.attentions.0.to_q.bias"), ["(16,)"]),
        (TEXT_WEIGHTS, _without("text_model.encoder.layers.0.mlp.fc1.weight"), ["(40, 12)"]),
        (
            UNET_WEIGHTS,
            _with("class_embedding.weight", np.zeros((3, 7), np.float32)),
            ["(3, 7)", "unexpected"],
        ),
        (TEXT_WEIGHTS, _with("final_layer_norm.bias", np.zeros((12,), np.float32)), ["(12,)", "unexpected"]),
        (
            UNET_WEIGHTS,
            _with("conv_in.weight", np.zeros((16, 9, 3, 3), np.float32)),
            ["(16, 9, 3, 3)", "(16, 4, 3, 3)"],
        ),
        (VAE_WEIGHTS, _with("quant_conv.bias", np.zeros((9,), np.float32)), ["(9,)", "(8,)"]),
    ],
    ids=[
        "missing unet",
        "missing vae",
        "missing text",
        "unexpected",
        "twice",
        "shape of a kernel",
        "shape of a bias",
    ],
)
def test_a_tensor_that_does_not_fit_is_named(folder, file, change, words):
    before = load_file(folder / file)
    _rewrite(folder / file, change)
    after = load_file(folder / file)
    changed = {
        name
        for name in before.keys() | after.keys()
        if name not in before or name not in after or before[name].shape != after[name].shape
    }
    with pytest.raises(UserError) as error:
        load_model(folder)
    for word in (*(name.removeprefix("text_model.") for name in changed), file, *words):
        assert word in str(error.value)


@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "unet/config.json",
        UNET_WEIGHTS,
        VAE_WEIGHTS,
        TEXT_WEIGHTS,
        "scheduler/scheduler_config.json",
        "tokenizer/vocab.json",
    ],
)
def test_a_missing_part_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(UserError, match=name):
        load_model(folder)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        load_model(tmp_path / "nowhere")


@pytest.mark.parametrize("name", [UNET_WEIGHTS, "vae/config.json"])
def test_a_half_written_file_is_named(folder, name):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=name):
        load_model(folder)


def test_another_kind_of_model_is_refused(folder):
    index = json.loads((folder / "model_index.json").read_text())
    index["unet"] = ["diffusers", "SD3Transformer2DModel"]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="SD3Transformer2DModel"):
        load_model(folder)


def test_a_broken_tokenizer_is_named(folder):
    (folder / "tokenizer/vocab.json").write_text("{")
    with pytest.raises(UserError, match="tokenizer in .* cannot be read"):
        load_model(folder)


def test_a_token_that_no_encoder_can_hold_is_named(folder):
    vocabulary = json.loads((folder / "tokenizer/vocab.json").read_text())
    vocabulary[next(iter(vocabulary))] = 2**31
    (folder / "tokenizer/vocab.json").write_text(json.dumps(vocabulary))
    with pytest.raises(UserError, match=r"tokenizer in .* cannot be read \(vocab.json has the id 2147483648"):
        load_model(folder)


def test_parts_of_different_models_are_refused(folder):
    config = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps({**config, "beta_schedule": "wild"}))
    with pytest.raises(UserError, match="wild"):
        load_model(folder)


def _edit(folder, name, **changes):
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**content, **changes}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"_class_name": "StableDiffusionXLPipeline"}, "is StableDiffusionXLPipeline: SDXL"),
        ({"_class_name": "StableDiffusion3Pipeline"}, "Stable Diffusion 3"),
        ({"_class_name": "StableDiffusionInpaintPipeline"}, "an inpainting model"),
        ({"_class_name": "LatentConsistencyModelPipeline"}, "LCM"),
        ({"_class_name": ["x"], "unet": None}, "whose unet is None"),
        (
            {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]},
            "a part that these models do not have.*text_encoder_2",
        ),
        ({"vae": {"class": "AutoencoderKL"}}, "whose vae is"),
    ],
)
def test_other_models_are_named(folder, changes, says):
    _edit(folder, "model_index.json", **changes)
    with pytest.raises(UserError, match=says):
        load_model(folder)


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("unet/config.json", {"layers_per_block": 3}, "unet/config.json describes a network of at least"),
        ("vae/config.json", {"layers_per_block": 3}, "vae/config.json describes"),
        ("text_encoder/config.json", {"num_hidden_layers": 4}, "text_encoder/config.json describes"),
        ("unet/config.json", {"norm_eps": "small"}, "unet/config.json: UNet config: norm_eps"),
        (
            "scheduler/scheduler_config.json",
            {"num_train_timesteps": 1e9},
            "scheduler_config.json: .*timesteps",
        ),
        ("tokenizer/tokenizer_config.json", {"model_max_length": -3}, "tokenizer .*model_max_length is -3"),
        ("tokenizer/tokenizer_config.json", {"model_max_length": "12"}, "tokenizer in"),
    ],
)
def test_settings_that_do_not_fit_are_named_with_their_file(folder, name, changes, says):
    _edit(folder, name, **changes)
    with pytest.raises(UserError, match=says):
        load_model(folder)


@pytest.mark.parametrize("name", ["/etc/passwd", "../unet/x.safetensors", 3, "", "more.json"])
def test_an_index_of_shards_leads_nowhere_else(folder, name):
    (folder / UNET_WEIGHTS).unlink()
    index = {"weight_map": {"conv_in.weight": name}}
    (folder / f"{UNET_WEIGHTS}.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="its weight_map names"):
        load_model(folder)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"<frida>": 5000}', "the token '<frida>' the id 5000, but it would have 543"),
        ('{"<frida>": 543}', "The tokenizer's 544 tokens do not fit"),
        ('{"<frida>": "x"}', "'<frida>' the id 'x'"),
        ("[3]", "tokenizer in .* cannot be read"),
    ],
)
def test_added_tokens_that_do_not_fit_are_refused(folder, content, says):
    (folder / "tokenizer/added_tokens.json").write_text(content)
    with pytest.raises(UserError, match=says):
        load_model(folder)


def test_spacing_and_zero_snr_are_read_and_written(folder, tmp_path):
    _edit(folder, "scheduler/scheduler_config.json", timestep_spacing="trailing", rescale_betas_zero_snr=True)
    model = load_model(folder)
    assert model.schedule.timestep_spacing == "trailing" and model.schedule.alphas_cumprod[-1] < 1e-6
    save_model(tmp_path / "again", model)
    chex.assert_trees_all_equal(load_model(tmp_path / "again").schedule, model.schedule)


def _flax_tree(parameters, lists):
    """A tree as written by Flax-based libraries; `lists`: whether its layers are in a separate subtree."""
    tree = {}
    for path, value in flatten_dict(parameters).items():
        names = [
            part
            for name in path[:-1]
            for part in (name.split("_") if name[:7] == "layers_" and lists else [name])
        ]
        place = tree
        for name in names:
            place = place.setdefault(name, {})
        place[path[-1]] = np.asarray(value)
    return tree


@pytest.mark.parametrize("sharded", [False, True])
def test_flax_weights_are_read(folder, saved, sharded):
    model = saved[0]
    trees = {
        "unet/diffusion_flax_model": _flax_tree(model.unet_params, False),
        "vae/diffusion_flax_model": _flax_tree(model.vae_params, False),
        "text_encoder/flax_model": {"text_model": _flax_tree(model.text_params, True)},
    }
    for old in (UNET_WEIGHTS, VAE_WEIGHTS, TEXT_WEIGHTS):
        (folder / old).unlink()
    for name, tree in trees.items():
        if not sharded:
            (folder / f"{name}.msgpack").write_bytes(msgpack_serialize(tree))
            continue
        # transformers' sharded format: flat names with slashes.
        flat = {"/".join(path): value for path, value in flatten_dict(tree).items()}
        names = sorted(flat)
        parts = {f"{Path(name).name}-{part}.msgpack": names[part::2] for part in range(2)}
        for file, chosen in parts.items():
            (folder / Path(name).parent / file).write_bytes(
                msgpack_serialize({key: flat[key] for key in chosen})
            )
        index = {"weight_map": {key: file for file, chosen in parts.items() for key in chosen}}
        (folder / f"{name}.msgpack.index.json").write_text(json.dumps(index))
    classes = {
        "unet": "FlaxUNet2DConditionModel",
        "vae": "FlaxAutoencoderKL",
        "text_encoder": "FlaxCLIPTextModel",
    }
    _edit(folder, "model_index.json", **{part: ["diffusers", kind] for part, kind in classes.items()})
    _edit(folder, "unet/config.json", dtype="float32", split_head_dim=False)
    _assert_same_parameters(load_model(folder), model)


@pytest.mark.parametrize("content", [b"", b"\x80", b"\x93abc", b"\xc7\x05\x01abcde", b"\x81\xa1a\x01"])
def test_damaged_flax_weights_are_named(folder, content):
    (folder / UNET_WEIGHTS).unlink()
    (folder / "unet/diffusion_flax_model.msgpack").write_bytes(content)
    with pytest.raises(
        UserError, match="diffusion_flax_model.msgpack is not a readable file of Flax weights"
    ):
        load_model(folder)
