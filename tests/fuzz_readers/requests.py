"""Text files that say what to make: an earlier run's config.json, prompts, and trials."""

from pathlib import Path

from ge3d_jax.core.settings import to_tree
from ge3d_jax.runs.asked import asked_by_file, asked_by_preset
from ge3d_jax.runs.sweep_plan import read_lines
from ge3d_jax.runs.trials import read_trials
from tests.fuzz_readers.attempts import Target
from tests.fuzz_readers.damage import Random, damage_bytes, damage_json


class Runs(Target):
    """The config.json of an earlier run."""

    keys = ("start", "loras", "textual_inversions", "dtype", "kind", "density")

    def prepare(self) -> None:
        asked = asked_by_preset(None, guidance=None, density=None, overrides=None)
        settings = to_tree(asked.settings)
        self.content = {"prompt": "a red mushroom", "seed": 3, "preset": asked.preset, "settings": settings}
        self.content |= {
            "model": "toybox",
            "dtype": "float32",
            "loras": [["a.safetensors", 1.0]],
            "start": None,
        }

    def damage(self, rng: Random) -> list[Path]:
        data = damage_json(rng, self.content, self.keys)
        if rng.random() < 0.1:
            data = damage_bytes(rng, data, data)
        (self.folder / "config.json").write_bytes(data)
        return [self.folder / "config.json"]

    def read(self) -> None:
        asked_by_file(self.folder / "config.json", overrides=None)


class Lists(Target):
    """Prompts of a sweep, and trials of a comparison."""

    def prepare(self) -> None:
        self.texts = [
            b"a red mushroom\ta.b=2 c='x y'\na blue robot\n",
            b"ge3d nodes.count=3  # a comment\nsds times.variant='uniform'\n",
        ]

    def damage(self, rng: Random) -> list[Path]:
        data, other = (self.texts[int(rng.integers(2))] for _ in range(2))
        (self.folder / "list.txt").write_bytes(damage_bytes(rng, data, other))
        return [self.folder / "list.txt"]

    def read(self) -> None:
        try:
            read_lines(self.folder / "list.txt")
        finally:
            read_trials(self.folder / "list.txt", preset="toybox64")
