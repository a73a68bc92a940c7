"""Time iterations with and without a browser on the live view, in turns during one run.

    python experiments/benchmark_live.py

This takes five minutes on two CPU cores and prints the median and the mean iteration with and without a
browser, and their ratio. The browser is headless Chromium, which draws on the CPU; one with a graphics card,
or on another computer, costs less. --stills checks the box for still pictures; the mean then includes
compiling what draws them. It needs viser, and Chromium on the PATH.
"""

import shutil
import statistics
import subprocess
import tempfile
import time
from functools import partial
from typing import Any

from absl import flags

from ge3d_jax.cli import script

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_PROMPT = flags.DEFINE_string("prompt", "a red mushroom", "What to make meanwhile.")
_TURN = flags.DEFINE_integer("turn", 40, "Iterations with and then without a browser.", lower_bound=2)
_TURNS = flags.DEFINE_integer("turns", 3, "How many turns of each.", lower_bound=1)
_STILLS = flags.DEFINE_bool("stills", False, "Let the run draw the object while the camera rests.")
_PORT = flags.DEFINE_integer("port", 8765, "Where the live view is.")
# For the browser to load the page, and to be gone: these iterations of a turn and seconds are not counted.
_SETTLING_ITERATIONS, _SETTLING_SECONDS = 8, 10.0


def _turns(browser: str) -> Any:
    from ge3d_jax.runs.observers import Observer

    class Turns(Observer):
        """Opens and closes the browser by turns, and takes the times."""

        def __init__(self) -> None:
            self.seconds: tuple[list[float], list[float]] = ([], [])
            self._browser: subprocess.Popen[bytes] | None = None
            self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
            self._begun = 0.0

        def on_iteration(self, done: int, numbers: object, state: object) -> bool:
            turn, place = divmod(done - 1, _TURN.value)
            if place >= _SETTLING_ITERATIONS:
                self.seconds[turn % 2].append(time.monotonic() - self._begun)
            if done % _TURN.value == 0:
                self._close()
                if turn % 2 == 0:
                    self._open()
                time.sleep(_SETTLING_SECONDS)
            self._begun = time.monotonic()
            return False

        def _open(self) -> None:
            address = f"http://localhost:{_PORT.value}"
            options = ["--headless", "--no-sandbox", "--disable-gpu", "--use-angle=swiftshader"]
            options += ["--enable-unsafe-swiftshader", "--window-size=1200,800", "--remote-debugging-port=0"]
            profile = f"--user-data-dir={self._profile.name}"
            self._browser = subprocess.Popen([browser, *options, profile, address], stderr=subprocess.DEVNULL)

        def _close(self) -> None:
            if self._browser is not None:
                self._browser.terminate()
                self._browser.wait()
                self._browser = None

        def __exit__(self, *_: object) -> None:
            self._close()
            self._profile.cleanup()

    return Turns()


def main() -> None:
    """Run, and print the times."""
    import ge3d_jax
    from ge3d_jax.core.errors import UserError
    from ge3d_jax.runs.live import LiveView
    from ge3d_jax.viewer.live import ViserPage

    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
        raise UserError(f"No browser was found; install one of {', '.join(_BROWSERS)}.")
    turns = _turns(browser)
    iterations = 2 * _TURNS.value * _TURN.value
    with tempfile.TemporaryDirectory() as folder:
        ge3d_jax.generate(
            _PROMPT.value,
            out=folder,
            overrides={"iterations": iterations},
            preview_every=0,
            save_seconds=None,
            observers=[LiveView(_PORT.value, open_page=partial(ViserPage, stills=_STILLS.value)), turns],
        )
    for name, average in (("median", statistics.median), ("mean", statistics.mean)):
        without, watched = map(average, turns.seconds)
        print(f"{name} without a browser {without:.3f} s, with one {watched:.3f} s: {watched / without:.3f}")


if __name__ == "__main__":
    script.run(main)
