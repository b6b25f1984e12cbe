"""Tables in documents come from committed results, and say on which machine."""

import pytest

from benchmarks.tables import DOCUMENTS, ROOT, rendered


@pytest.mark.parametrize("name", DOCUMENTS)
def test_tables_are_what_the_results_say(name: str) -> None:
    document = ROOT / name
    assert document.read_text() == rendered(document), "run python -m benchmarks.tables"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_table_names_its_machine_and_its_command(name: str) -> None:
    text = rendered(ROOT / name)
    measured = text.count("<!-- table:") - text.count("*not measured yet*")
    assert measured == text.count(" cores, ") == text.count("; `python -m benchmarks.")
