"""Check whether a model is loaded correctly, without a reference to compare it with.

    ge3d check-model --model=stable-diffusion-2-1-base

This lists the model's parts, then tests it on what it was trained for: reconstructing pictures, and
separating noise from pictures, better with the right caption and time than with wrong ones. Each result is
shown next to those of a correctly loaded model and of a random or wrongly loaded one. The exit status is 1 if
a test fails.

The bounds were set with the bundled model and damaged copies of it. No published weights have been tried: if
such a model just misses a bound, look at its pictures, too (ge3d sample).
"""

from absl import flags

from ge3d_jax.cli import model_flags, script

flags.adopt_module_key_flags(model_flags)


def main() -> int | None:
    """Load the model, test it, and print the results."""
    from rich.console import Console
    from rich.table import Table

    from ge3d_jax.runs import model_check
    from ge3d_jax.runs.request import TOYBOX_MARKER

    choice = model_flags.model_choice()
    place = choice.check()
    model = choice.load(place)
    console = Console(highlight=False)
    table = Table("part", "class", "parameters", "type", "memory", title=str(choice.model or "bundled model"))
    for part in model_check.parts(model):
        memory = f"{part.bytes / 1e6:.0f} MB"
        table.add_row(part.name, part.kind, f"{part.parameters:,}", part.dtypes, memory)
    console.print(table)
    console.print(
        f"predicts {model.schedule.prediction_type}, {model.schedule.steps} times, "
        f"texts of {model.text_encoder.config.max_position_embeddings} tokens, "
        f"latents × {model.scaling_factor}"
    )
    console.print("testing; the first time, most of it is compiling", style="dim")
    is_toybox = (place / TOYBOX_MARKER).is_file()
    size = model_check.probe_size(model)
    probe = model_check.toybox_probe(size) if is_toybox else model_check.drawn_probe(size)
    findings = model_check.check(model, probe)
    for finding in findings:
        verdict = "[green]yes[/]" if finding.passed else "[red]NO[/] "
        console.print(f"{verdict}  {finding.question}")
        console.print(f"     {finding.measured} (wanted: {finding.wanted})")
        console.print(f"     [dim]otherwise: {finding.otherwise}[/]")
    if not all(finding.passed for finding in findings):
        console.print("[red]The model is not loaded correctly, or it was never trained.[/]")
        return script.EXIT_FAILED
    console.print("[green]The model is loaded correctly.[/]")
    if not is_toybox:
        console.print(
            "These bounds have not been tried with published weights: look at pictures too (ge3d sample)."
        )
    return None
