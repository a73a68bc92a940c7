"""Where compiled code is kept between runs."""

import os
from pathlib import Path

# Compilations shorter than this are not worth a file.
_SHORTEST_KEPT_SECONDS = 0.5


def cache_folder() -> Path:
    """What this package may keep: $XDG_CACHE_HOME or ~/.cache, then ge3d_jax. Removing it is safe."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ge3d_jax"


def keep_compiled_code() -> None:
    """Let JAX reuse what it compiled in earlier runs; a cache that is set up already stays as it is."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _SHORTEST_KEPT_SECONDS)
    # JAX looks for its cache once, at the first compilation, which a notebook may have behind it.
    compilation_cache.reset_cache()
