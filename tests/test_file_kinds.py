"""docs/file-kinds.md is what the tests declare."""

from __future__ import annotations

from collections import Counter

from tests.helpers.file_kinds import COMMAND, PAGE, declared, page


def test_page_is_what_the_tests_declare() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), f"{PAGE.name}: run {COMMAND}"


def test_kinds_have_different_names() -> None:
    names = Counter((row.group, row.name) for row in declared())
    assert [name for name, count in names.items() if count > 1] == []


def test_rejected_kinds_quote_their_message() -> None:
    silent = [row for row in declared() if "rejected" in row.result and not row.says]
    assert silent == []
    assert len(declared()) >= 5
