"""Small vocabularies: each word is one token, other text is spelled, and files are reproducible."""

import json
import warnings

import pytest
from transformers import CLIPTokenizer

from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.tokenizer import build_tokenizer, prompt_ids, save_tokenizer

# Words that share prefixes, middles and suffixes, so that the merges of one could break another.
WORDS = [
    "red",
    "robot",
    "mushroom",
    "room",
    "mush",
    "bed",
    "bedroom",
    "roof",
    "rooftop",
    "o",
    "oo",
    "café",
    "top",
]
FILES = ("vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json")


@pytest.mark.parametrize("words", [WORDS, WORDS[::-1], WORDS * 2])
def test_every_word_is_one_token(tmp_path, words):
    tokenizer = build_tokenizer(words, tmp_path, max_length=9)
    for word in words:
        assert tokenizer.tokenize(word) == ["caf\u00c3\u00a9</w>" if word == "café" else f"{word}</w>"]
    assert tokenizer.tokenize("Red mushroom, robots") == [
        "red</w>",
        "mushroom</w>",
        ",</w>",
        "robot",
        "s</w>",
    ] or ("".join(tokenizer.tokenize("robots")) == "robots</w>")


def test_texts_get_start_end_and_padding_and_are_truncated(tmp_path):
    tokenizer = build_tokenizer(WORDS, tmp_path, max_length=6)
    ids = tokenizer(["red robot", "red " * 9, ""], padding="max_length", truncation=True)["input_ids"]
    start, end, red = (
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.convert_tokens_to_ids("red</w>"),
    )
    robot = tokenizer.convert_tokens_to_ids("robot</w>")
    # Stable Diffusion 2 pads with "!", id 0.
    assert ids == [[start, red, robot, end, 0, 0], [start, red, red, red, red, end], [start, end, 0, 0, 0, 0]]
    assert {start, end} == {len(tokenizer) - 2, len(tokenizer) - 1}


@pytest.mark.parametrize("text", ["zebra", "x-ray 42", "mushrooms", "日本", "a\tb", "ÿ€"])
def test_unknown_text_is_spelled_not_lost(tmp_path, text):
    tokenizer = build_tokenizer(WORDS, tmp_path, max_length=40)
    ids = tokenizer(text)["input_ids"][1:-1]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids).replace(" ", "") == text.replace(" ", "").replace("\t", "")


def test_the_same_words_give_the_same_files(tmp_path):
    build_tokenizer(WORDS, tmp_path / "one", max_length=9)
    build_tokenizer(set(WORDS[::-1]), tmp_path / "two", max_length=9)
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_saving_writes_the_files_that_were_read(tmp_path):
    tokenizer = build_tokenizer(WORDS, tmp_path / "one", max_length=9)
    save_tokenizer(tokenizer, tmp_path / "two")
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    again = CLIPTokenizer.from_pretrained(tmp_path / "two")
    assert again("a red mushroom")["input_ids"] == tokenizer("a red mushroom")["input_ids"]
    assert again.model_max_length == 9


def test_ids_count_from_zero_without_gaps(tmp_path):
    build_tokenizer(WORDS, tmp_path, max_length=9)
    vocabulary = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))


@pytest.mark.parametrize("word", ["light-blue", "two words", "", "abc123"])
def test_words_of_several_pieces_are_refused(tmp_path, word):
    with pytest.raises(UserError, match="word"):
        build_tokenizer(["red", word], tmp_path, max_length=9)


def test_truncated_prompts_warn_and_name_what_is_lost(tmp_path):
    tokenizer = build_tokenizer(WORDS, tmp_path, max_length=9)
    with pytest.warns(UserWarning, match="the end 'top café'"):
        ids = prompt_ids(tokenizer, ["red", "red robot top café"], 4)
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    red, robot = tokenizer.convert_tokens_to_ids(["red</w>", "robot</w>"])
    assert ids.tolist() == [[start, red, end, 0], [start, red, robot, end]]


def test_prompts_that_just_fit_raise_no_warning(tmp_path):
    tokenizer = build_tokenizer(WORDS, tmp_path, max_length=9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert prompt_ids(tokenizer, ["red robot", ""], 4).shape == (2, 4)
        assert prompt_ids(tokenizer, ["red " * 7], 9).shape == (1, 9)


@pytest.mark.parametrize(
    ("prompt", "weighted"),
    [
        ("a (red:1.3) mushroom", "(red:1.3)"),
        ("a ((red)) mushroom", "((red))"),
        ("a (red)1.3 mushroom", ")1.3"),
        ("a red++ mushroom", "d++"),
        ("a [[red]] mushroom", "[[red]]"),
        ("a red mushroom <lora:style:0.8>", "<lora:style:0.8>"),
        ("a red (big) mushroom: a [small] one, 1.3 m <cat>", None),
        ("C+ or (a: b)", None),
    ],
)
def test_weights_of_words_are_said_not_to_be_applied(tmp_path, prompt, weighted):
    tokenizer = build_tokenizer(["red"], tmp_path, 40)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        prompt_ids(tokenizer, [prompt], 40)
    said = [str(one.message) for one in caught if "weight" in str(one.message)]
    assert len(said) == (weighted is not None) and all(repr(weighted) in text for text in said)
