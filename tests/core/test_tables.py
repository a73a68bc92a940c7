"""Markdown tables and their cells."""

from ge3d_jax.core.tables import counted, markdown_table, number_cell


def test_a_table_in_markdown():
    rows = [{"loss": "ge3d", "PSNR": "20.1"}, {"PSNR": "–", "loss": "sds"}]
    assert markdown_table(rows) == "| loss | PSNR |\n| --- | --- |\n| ge3d | 20.1 |\n| sds | – |\n"


def test_a_number_has_its_digits_and_its_error():
    assert number_cell(None, 2) == number_cell(None, 2, 0.5) == "–"
    assert number_cell(12.345, 1) == "12.3" and number_cell(0.0, 2) == "0.00"
    assert number_cell(12.345, 2, 0.05) == "12.35 ± 0.05" and number_cell(3.0, 0, 0.0) == "3 ± 0"


def test_one_is_not_several():
    assert [counted(number, "seed") for number in (0, 1, 2)] == ["0 seeds", "1 seed", "2 seeds"]
