"""Cards, the plan of a program for a card, its page, and invalid inputs."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from benchmarks.models import SIZES
from gpu_plan import cards, compiling, report
from gpu_plan.compiling import Compiled
from gpu_plan.costs import Cost
from gpu_plan.kernels import Kernel, parse_assembler
from gpu_plan.plan import FITS, FITS_BARELY, FITS_NOT, least_seconds, plan, verdict
from gpu_plan.rows import Row, published
from gpu_plan.turns import with_buffer

from ge3d_jax.core.errors import UserError
from ge3d_jax.guidance.losses import LOSSES
from ge3d_jax.guidance.prompts import view_texts
from ge3d_jax.training.compilation import Compilation
from ge3d_jax.training.presets import PRESETS

TEXT = (Path(__file__).parent / "program.txt").read_text(encoding="utf-8")
ASSEMBLER = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'forward' for 'sm_90a'
ptxas info    : Function properties for forward
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 57 registers, used 1 barriers, 1024 bytes smem, 432 bytes cmem[0]
ptxas info    : Compiling entry function 'back' for 'sm_90a'
ptxas info    : Function properties for back
    16 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 255 registers, 432 bytes cmem[0]
"""


def asked(**changes):
    row = dataclasses.replace(Row(card="h100", guidance="ge3d", splats=100_000), **changes)
    return row.asked | {"views": 4, "image_size": 512, "buffer": 2**21}


def planned(memory=4_000_000_000, **changes):
    compiled = Compiled(
        text=TEXT,
        compilation=Compilation(60.0, memory, 0, 2_000_000_000, 1),
        outside=1_000_000_000,
        remedies=["views_per_batch=1"],
        kernels=[Kernel("forward", 57, 1024, 0)],
    )
    chosen = cards.card(changes.get("card", "h100"))
    scenes = {fov: {"jvp(vmap())/while": round(100 * fov)} for fov in (0.5, 0.25)}
    return plan(compiled, chosen, asked=asked(**changes), scenes=scenes)


@pytest.mark.parametrize(
    ("preset", "size"),
    [("toybox", "toybox"), ("toybox_ball", "toybox"), ("toybox64", "toybox64"), ("paper", "sd21")],
)
def test_a_preset_is_planned_with_the_model_it_is_made_for(preset, size):
    assert compiling.size_of(PRESETS[preset], preset) is SIZES[size]


def test_five_cards_have_rates_that_go_with_their_specification():
    assert cards.known_cards() == ["h100", "a100", "rtx4090", "a6000", "rtx3060"]
    h100, small = cards.card("h100"), cards.card("rtx3060")
    assert h100.title == "NVIDIA H100 80GB HBM3" and h100.target.capability == (9, 0)
    assert small.target.capability == (8, 6) and small.memory == 12_600_000_000
    # 132 cores of 128 units at 1.98 GHz.
    assert h100.float32_rate == pytest.approx(66.9e12, rel=1e-3) and h100.bfloat16_rate == 989.4e12
    assert h100.bandwidth == 3_352_320_000_000


def test_a_file_describes_another_card(tmp_path):
    mine = tmp_path / "mine.txtpb"
    mine.write_text(cards.card("a100").specification.replace("core_count: 108", "core_count: 54"))
    assert cards.card(str(mine)).float32_rate == cards.card("a100").float32_rate / 2
    assert cards.card(str(mine)).name == "mine"


@pytest.mark.parametrize("field", ["core_count", "memory_bandwidth", "clock_rate_ghz", "minor", "# "])
def test_a_specification_that_lacks_something_is_refused(tmp_path, field):
    broken = tmp_path / "broken.txtpb"
    lines = cards.card("h100").specification.splitlines()
    broken.write_text(
        "\n".join(line.replace(f"{field}:", "") for line in lines if not line.startswith(field))
    )
    with pytest.raises(UserError, match=f"broken.txtpb has no (comment|{field.strip('# ') or 'comment'})"):
        cards.card(str(broken))


def test_cards_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(UserError, match="'h1000' is not known; use one of a100, a6000, h100"):
        cards.card("h1000")
    with pytest.raises(UserError, match="cannot be read"):
        cards.card(str(tmp_path / "none.txtpb"))
    (tmp_path / "binary.txtpb").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="it is not text"):
        cards.card(str(tmp_path / "binary.txtpb"))


def test_without_the_cuda_packages_one_sentence_says_so():
    with pytest.raises(UserError, match="make plan-gpu"):
        compiling.prepare(find=lambda name: None)


def test_a_card_holds_what_jax_takes_of_it_by_itself_or_at_most():
    assert verdict(75, 100) == FITS
    assert verdict(76, 100) == verdict(95, 100) == FITS_BARELY
    assert verdict(96, 100) == FITS_NOT


def test_the_least_time_is_the_longer_of_bytes_and_products():
    card = dataclasses.replace(cards.card("h100"), bandwidth=10.0, bfloat16_rate=1000.0, float32_rate=100.0)
    assert least_seconds(Cost("product", 50, 2000, True), card) == 5.0
    assert least_seconds(Cost("product", 50, 20_000, True), card) == 20.0
    assert least_seconds(Cost("product", 50, 2000, False), card) == 20.0


def test_a_plan_sums_up_parts_and_scenes():
    content = planned()
    assert content["memory"]["needed"] == 7_000_000_000 and content["memory"]["fits"] == FITS
    first, second = (scene["parts"] for scene in content["scenes"])
    assert first["compositing, forward"]["launches"] == 50 + 51
    assert second["compositing, forward"]["launches"] == 25 + 26
    unet = first["UNet, 2 samples"]
    products = 2 * 16 * 320 * 64 + 2 * (2 * 4 * 4 * 16) * (3 * 3 * 8) + 2 * (2 * (2 * 4) * 6 * 8)
    assert unet["operations"] == 6 * products and second["UNet, 2 samples"] == unet
    # Everything other than products, convolutions and attention: the fusion after them.
    assert unet["other_bytes"] == 6 * 2 * (16 * 64 + 16 * 32)
    assert unet["bytes"] > unet["other_bytes"]
    assert content["scenes"][0]["questions"] == 6 + 51


def test_the_page_tells_of_every_file_and_of_what_lowers_the_memory(tmp_path, capsys):
    content = planned(memory=70_000_000_000)
    assert content["memory"]["fits"] == FITS_BARELY
    report.print_plan(content)
    told = " ".join(capsys.readouterr().out.split())
    assert "NVIDIA H100 80GB HBM3" in told and "--set=views_per_batch=1 lowers it." in told
    assert "forward: 57 registers" in told
    path = report.save(content, tmp_path)
    assert path.name == "h100-paper-ge3d-bfloat16-100k.json"
    assert path == report.path_of(Row(card="h100", guidance="ge3d", splats=100_000).asked, tmp_path)
    report.save(planned(guidance="sds"), tmp_path)
    report.save(planned(card="rtx3060", settings=(("views", "2"),)), tmp_path)
    assert json.loads(path.read_text())["memory"]["needed"] == 73_000_000_000
    page = (tmp_path / "README.md").read_text()
    assert "| NVIDIA H100 80GB HBM3 | bfloat16 | 100,000 | 73.0 GB | if JAX may take 95 % of it |" in page
    # 24 launches of the network, 101 or 51 of the renderer, and 3 others.
    assert "| 128 / 78 | 104 / 54 |" not in page and "| 128 / 78 |" in page
    assert "| sds | 7.0 GB | yes |" in page and "## NVIDIA GeForce RTX 3060: ge3d" in page
    assert "| NVIDIA H100 80GB HBM3 | forward | 57 | 1024 | 0 |" in page


def test_what_the_assembler_says_of_kernels():
    forward, back = parse_assembler(ASSEMBLER)
    assert forward == Kernel("forward", registers=57, shared=1024, spilled=0)
    assert back == Kernel("back", registers=255, shared=0, spilled=32)


def test_the_published_rows_are_of_every_card_and_loss():
    rows = list(dict.fromkeys(published()))
    assert {row.card for row in rows} == set(cards.known_cards())
    assert {row.guidance for row in rows} == set(LOSSES)
    kinds = {(row.dtype, row.splats) for row in rows if row.guidance == "ge3d" and row.card == "a6000"}
    assert kinds == {(dtype, count) for dtype in ("bfloat16", "float32") for count in (100_000, 400_000)}
    assert all(row.config.scene.start.count == row.splats for row in rows)


def test_wrong_names_are_refused_before_anything_is_compiled():
    for changes in ({"preset": "papier"}, {"guidance": "ge4d"}, {"settings": (("views", "x"),)}):
        with pytest.raises(UserError):
            dataclasses.replace(Row(card="h100"), **changes).made((0.5,))


SMALL = Row(
    card="h100",
    preset="toybox",
    splats=60,
    settings=(("image_size", "16"), ("buffer_capacity", "16"), ("views", "2")),
)


def test_the_buffer_holds_the_fullest_view():
    config = SMALL.config
    fitting = with_buffer(config, (0.5, 0.3))
    assert config.scene.buffer_capacity == 16 < fitting.scene.buffer_capacity
    # Every tile lists its splats, so there are more entries than splats.
    assert fitting.scene.buffer_capacity >= 60
    assert with_buffer(fitting, (0.5, 0.3)) == fitting


def test_the_texts_of_a_plan_serve_a_loss():
    shapes = compiling.text_shapes(SIZES["toybox"], jnp.bfloat16)
    texts = jax.eval_shape(lambda e: view_texts(e, jnp.zeros(2), use_perp_neg=True), shapes)
    assert texts.source is None and texts.avoided.shape == (2, 2, *texts.positive.shape[1:])
