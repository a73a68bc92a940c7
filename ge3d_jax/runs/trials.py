"""Trials of a loss comparison: a loss and its changes to the preset's settings."""

import hashlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ge3d_jax.core.errors import UserError
from ge3d_jax.runs.asked import Asked, asked_by_preset
from ge3d_jax.runs.folder import slug
from ge3d_jax.training.config import Config


@dataclass(frozen=True)
class Trial:
    """A loss, with changes to its settings for the preset.

    Attributes:
        guidance: name of the loss.
        overrides: settings to change, by dotted name.
        start: initialization of its runs, as for `configured`; None uses the preset's start.
    """

    guidance: str
    overrides: Mapping[str, str] = field(default_factory=dict)
    start: str | None = None

    @property
    def changes(self) -> str:
        """The overrides on one line."""
        return " ".join(f"{name}={value}" for name, value in self.overrides.items())

    @property
    def label(self) -> str:
        """The loss, the start and the overrides on one line."""
        start = "" if self.start is None else f"from {self.start}"
        return " ".join(filter(None, (self.guidance, start, self.changes)))

    @property
    def folder_name(self) -> str:
        """Folder name for its results, distinct from those of other trials."""
        told = self.label.removeprefix(self.guidance).strip()
        if not told:
            return self.guidance
        # A slug is truncated, and trials may differ beyond that length.
        digest = hashlib.sha256(told.encode()).hexdigest()[:8]
        return f"{self.guidance}-{slug(told)}-{digest}"

    def asked(self, preset: str) -> Asked:
        """The request of its runs, except for prompt and seed. Raises UserError if it is invalid."""
        return asked_by_preset(
            preset, guidance=self.guidance, density=None, start=self.start, overrides=self.overrides
        )

    def settings(self, preset: str) -> Config:
        """The settings of its runs. Raises UserError if they are invalid."""
        return self.asked(preset).settings


def parse_trials(text: str, source: str, *, preset: str) -> list[Trial]:
    """Parse trials, one per line: the name of a loss, then name=value for each setting; # starts a comment.

    Args:
        text: the lines; values with spaces must be quoted.
        source: origin of the text, for error messages.
        preset: base settings.

    Raises:
        UserError: a line is not a valid trial or repeats one (the message gives its number), or there are no
            trials.
    """
    trials: list[Trial] = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            words = shlex.split(line, comments=True)
            if not words:
                continue
            pairs = [word.partition("=") for word in words[1:]]
            if not all(name and equals for name, equals, _ in pairs):
                raise UserError("write the loss and then name=value for each setting.")
            trial = Trial(words[0], {name: value for name, _, value in pairs})
            trial.settings(preset)
            if trial in trials:
                raise UserError(f"{trial.label!r} is there twice; leave one of them out.")
        except (UserError, ValueError) as error:
            raise UserError(f"{source}, line {number}: {error}") from error
        trials.append(trial)
    if not trials:
        raise UserError(f"{source} has no trials; write a loss's name on each line.")
    return trials


def read_trials(file: Path, *, preset: str) -> list[Trial]:
    """Read trials from a file; see `parse_trials`. Raises UserError if the file cannot be read."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"The file of trials {file} cannot be read ({error}); give a text with a loss on each line."
        ) from error
    return parse_trials(text, str(file), preset=preset)
