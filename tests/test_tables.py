"""Tables in documents come from committed results, and say on which machine."""

from typing import Any

import pytest

from benchmarks.tables import DOCUMENTS, ROOT, rendered, training_stages


@pytest.mark.parametrize("name", DOCUMENTS)
def test_tables_are_what_the_results_say(name: str) -> None:
    document = ROOT / name
    assert document.read_text() == rendered(document), "run python -m benchmarks.tables"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_table_names_its_machine_and_its_command(name: str) -> None:
    text = rendered(ROOT / name)
    measured = text.count("<!-- table:") - text.count("*not measured yet*")
    assert measured == text.count(" cores, ") == text.count("; `python -m benchmarks.")


def lesson(*names: str, updates: int = 1, begun: dict[str, Any] | None = None) -> dict[str, Any]:
    """What a manifest tells of one run of `stillhouse distill`."""
    told = {"items": 8, "students": [{"name": name, "updates": updates} for name in names]}
    return {**told, "begun": begun} if begun else told


def test_every_lesson_of_a_student_is_told_once_and_in_its_order() -> None:
    chain = lesson("guidance", "3-steps")
    walks = lesson("3-steps", updates=2, begun=chain)
    three, one = lesson("3-steps", updates=3, begun=walks), lesson("3-steps", "1-steps", updates=2, begun=chain)
    assert training_stages([three, None, one]) == [chain, one, three]
    assert training_stages([one, three]) == [chain, one, three]
    assert training_stages([None]) == []
