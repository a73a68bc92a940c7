"""The on-disk cache of compiled code, shared between runs."""

import os
from pathlib import Path

# Compilations shorter than this are not worth caching.
_SHORTEST_KEPT_SECONDS = 0.5


def cache_folder() -> Path:
    """The package's cache folder: $XDG_CACHE_HOME/ge3d_jax or ~/.cache/ge3d_jax. It is safe to delete."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ge3d_jax"


def keep_compiled_code() -> None:
    """Let JAX reuse code compiled in earlier runs; an already configured cache is left as it is."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _SHORTEST_KEPT_SECONDS)
    # JAX looks for its cache only at the first compilation, which may already have happened in a notebook.
    compilation_cache.reset_cache()
