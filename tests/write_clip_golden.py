"""Write tests/golden/clip.npz: results of transformers' CLIP for the folder of tests/tiny_clip.py.

.venv-torch/bin/python -m tests.write_clip_golden     (seconds; `make test-torch` sets up .venv-torch)
"""

import tempfile
from pathlib import Path

import numpy as np

from tests import tiny_clip


def features(folder):
    """transformers' features of the texts and of the pictures, by name."""
    import torch
    from transformers import CLIPModel

    from ge3d_jax.diffusion.networks.vision_encoder import prepare_picture
    from ge3d_jax.diffusion.tokenizer import prompt_ids
    from ge3d_jax.diffusion.weights.folder import load_tokenizer

    model = CLIPModel.from_pretrained(folder, attn_implementation="eager").eval()
    ids = torch.from_numpy(prompt_ids(load_tokenizer(folder), tiny_clip.TEXTS, 12)).long()
    seen = np.stack([prepare_picture(one, tiny_clip.VISION.image_size) for one in tiny_clip.pictures()])
    with torch.no_grad():
        text = model.text_model(ids).pooler_output
        picture = model.vision_model(torch.from_numpy(seen).permute(0, 3, 1, 2)).pooler_output
        found = {"text": model.text_projection(text), "pictures": model.visual_projection(picture)}
    return {name: value.numpy() for name, value in found.items()}


def main():
    found = {}
    for activation in ("quick_gelu", "gelu"):
        with tempfile.TemporaryDirectory() as folder:
            given = features(tiny_clip.save(Path(folder), activation))
        found |= {f"{activation}/{name}": value for name, value in given.items()}
    np.savez(tiny_clip.GOLDEN_FILE, **found)


if __name__ == "__main__":
    main()
