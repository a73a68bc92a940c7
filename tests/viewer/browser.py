"""A real headless browser that opens a page, acts on it, and reports what it saw."""

import re
import shutil
import subprocess

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")

# The browser writes its report into the page, from where this process reads it.
_TELL = """
<script>
{
  const tell = notes => {
    const seen = document.createElement("pre");
    seen.id = "seen";
    seen.textContent = notes.join("\\n");
    document.body.append(seen);
  };
  ACTIONS
}
</script>
"""


def visit(page, actions, *, options=()):
    """Run the script `actions` at the end of a page, and return the lines it reports with `tell([...])`.

    The browser writes out the page after its "load" event.
    """
    acted = page.with_name(f"acted-{page.name}")
    script = _TELL.replace("ACTIONS", actions)
    acted.write_text(
        page.read_text(encoding="utf-8").replace("</html>", f"{script}</html>"), encoding="utf-8"
    )
    done = subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={page.parent / 'profile'}",
            *options,
            "--dump-dom",
            acted.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    notes = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert notes is not None, done.stderr
    return notes[1].splitlines()
