"""Prompts of any content give the same ids as in diffusers' pipelines."""

import logging

import numpy as np
import pytest
from transformers import CLIPTokenizer

from ge3d_jax.diffusion.tokenizer import build_tokenizer, prompt_ids
from tests.reference_models import TINY_WORDS

LENGTH = 77
PROMPTS = [
    "",
    "   ",
    "a red mushroom",
    "A RED Mushroom!",
    "red,blue;robot... (a) [the] view-of",
    "don't, it's we'll they've",
    "über café 蘑菇 🍄 ñandú Ω",
    "one 2 34 567",
    "a\tred\nmushroom  with   spaces",
    "<|endoftext|> a red robot <|startoftext|>",
    "&amp; &lt;b&gt;",
]
TOO_LONG = ["a red mushroom " * 40, "蘑菇 " * 30]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    build_tokenizer(TINY_WORDS, folder, LENGTH)
    return CLIPTokenizer.from_pretrained(folder)


def _theirs(tokenizer, prompts):
    """Call the tokenizer like StableDiffusionPipeline.encode_prompt."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    return tokenizer(
        prompts,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="np",
    ).input_ids


@pytest.mark.parametrize("prompt", PROMPTS)
def test_prompts_that_fit(tokenizer, prompt, recwarn):
    np.testing.assert_array_equal(prompt_ids(tokenizer, [prompt], LENGTH), _theirs(tokenizer, [prompt]))
    assert not recwarn.list


@pytest.mark.parametrize("prompt", TOO_LONG)
def test_prompts_that_do_not(tokenizer, prompt):
    with pytest.warns(UserWarning, match="will not see the end"):
        ids = prompt_ids(tokenizer, [prompt], LENGTH)
    np.testing.assert_array_equal(ids, _theirs(tokenizer, [prompt]))
    assert ids.shape == (1, LENGTH)


def test_many_prompts_at_once(tokenizer):
    np.testing.assert_array_equal(prompt_ids(tokenizer, PROMPTS, LENGTH), _theirs(tokenizer, PROMPTS))
