"""Time Point-E's sampling of one cloud, with random weights, since times do not depend on them.

    python experiments/benchmark_point_e.py

A stage of n steps evaluates its network 2n - 1 times, at the published size 127 times: 13 minutes on two CPU
cores. So only --steps steps are timed, in a minute, and the time of a whole cloud is computed from that of an
evaluation. --steps=64 times all of them; --model=bundled times the small model of the Toybox world.
"""

from typing import Any

from absl import flags

from ge3d_jax.cli import script

_MODEL = flags.DEFINE_enum("model", "published", ["published", "bundled"], "The model of this size.")
_STEPS = flags.DEFINE_integer("steps", 3, "Number of steps to time.", lower_bound=2)


def _time_stage(name: str, sampler: Any, network: Any, stage: Any, condition: Any, **static: Any) -> float:
    """Time a stage, and print the result; returns the seconds that all of its steps would take."""
    import dataclasses

    import jax
    from benchmarks.measure import peak_bytes, time_calls, timed_compile

    from ge3d_jax.scenes.start.point_e.model import draw_noise
    from ge3d_jax.scenes.start.point_e.networks import parameter_shapes
    from ge3d_jax.scenes.start.point_e.sampler import make_plan

    key, few = jax.random.key(0), dataclasses.replace(stage, steps=_STEPS.value)
    weights = jax.tree.map(lambda leaf: 0.02 * jax.random.normal(key, leaf.shape), parameter_shapes(network))
    inputs = (weights, condition, make_plan(few), draw_noise(key, few, 1, network.points))
    compiled, compile_seconds = timed_compile(sampler.lower(*inputs, config=network, **static))
    (seconds,) = time_calls(lambda: jax.block_until_ready(compiled(*inputs)), repetitions=1, warm_up=0)
    one, evaluations = seconds / (2 * few.steps - 1), 2 * stage.steps - 1
    print(
        f"{name}: {network.points} points, {one:.2f} s an evaluation, {one * evaluations:.0f} s for all "
        f"{evaluations}; compiled in {compile_seconds:.0f} s; {(peak_bytes(compiled) or 0) / 1e9:.2f} GB",
        flush=True,
    )
    return one * evaluations


def main() -> None:
    """Time both stages, and print what a whole cloud takes."""
    import jax
    import jax.numpy as jnp

    from ge3d_jax.scenes.start.point_e.files import PointEConfig, bundled_folder, read_config
    from ge3d_jax.scenes.start.point_e.model import sample_base, sample_upsampler

    # Cached code from an earlier run would be loaded instead of compiled, whose time is measured.
    jax.config.update("jax_enable_compilation_cache", False)
    config = PointEConfig() if _MODEL.value == "published" else read_config(bundled_folder())
    base, upsampler = config.base, config.upsampler
    text = jnp.full((1, base.text_features), base.text_features**-0.5)
    given = jax.random.normal(jax.random.key(1), (1, upsampler.given_points, 6))
    total = _time_stage(
        "base network", sample_base, base, config.base_stage, text, guided=config.base_stage.is_guided
    ) + _time_stage("upsampler", sample_upsampler, upsampler, config.upsampler_stage, given)
    print(f"a cloud of {base.points + upsampler.points} points: {total:.0f} s")


if __name__ == "__main__":
    script.run(main)
