"""The evaluation prompts: sentences of the Toybox world."""

from collections.abc import Sequence

import numpy as np

from ge3d_jax.core.errors import UserError
from ge3d_jax.toybox.world.captions import Sentence, caption, parse
from ge3d_jax.toybox.world.objects import COLORS, KINDS

# Every kind once, those with a front (except the car and the mug) twice; every color twice.
PROMPTS = (
    "a red mushroom",
    "a cyan robot",
    "a yellow house",
    "a green duck",
    "an orange cat",
    "a white snowman",
    "a black penguin",
    "a grey television",
    "a blue car",
    "a pink pig",
    "a purple gift",
    "a brown mug",
    "a purple robot",
    "a white house",
    "a yellow duck",
    "a black cat",
    "a blue snowman",
    "a pink penguin",
    "a red television",
    "a brown pig",
    "a green tree",
    "a cyan lamp",
    "a grey rocket",
    "an orange cupcake",
)

# Name of the prompts that nothing was tuned on: `hidden_prompts`.
HIDDEN = "hidden"
_HIDDEN_PER_KIND = 3


def hidden_prompts(seed: int) -> list[str]:
    """Prompts outside PROMPTS: three of every kind, in colors drawn with `seed`."""
    random = np.random.default_rng(seed)
    known = {parse(prompt) for prompt in PROMPTS}
    prompts = []
    for kind in KINDS:
        sentences = [Sentence(kind, color) for color in COLORS]
        free = [sentence for sentence in sentences if sentence not in known]
        prompts += [caption(free[i]) for i in random.choice(len(free), _HIDDEN_PER_KIND, replace=False)]
    return prompts


def check_prompts(prompts: Sequence[str]) -> None:
    """Check that the gallery can judge the prompts.

    Raises:
        UserError: a prompt is not a sentence of the Toybox world, or it names a second color.
    """
    for prompt in prompts:
        if parse(prompt).second_color is not None:
            raise UserError(
                f"The prompt {prompt!r} names a second color, which the recognizer does not distinguish; "
                "give one with a single color."
            )
