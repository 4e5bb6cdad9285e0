"""A verification as text: a table, what to do, and a conclusion in the last line."""

from __future__ import annotations

from collections.abc import Sequence

from sdexport.runtime.component_backends import DEFAULT
from sdexport.verification.advice import advice
from sdexport.verification.report import Check
from sdexport.verification.verification_result import Verification


def report_lines(verification: Verification) -> list[str]:
    """The lines of the whole report; what the package says in them is not escaped yet."""
    about = verification.about
    where = ", ".join(about[key] for key in ("backend", "machine") if key in about)
    lines = [f"on {where}"] if where else []
    lines += [*table_lines(verification.checks), ""]
    lines += [f"note: {line}" for line in remarks(verification)]
    lines += [f"what to do: {line}" for line in advice(verification)]
    return [*lines, conclusion(verification)]


def table(checks: Sequence[Check]) -> str:
    """The checks as aligned text, those that failed first."""
    return "\n".join(table_lines(checks))


def table_lines(checks: Sequence[Check]) -> list[str]:
    """The lines of `table`."""
    rows: list[tuple[str, ...]] = [("", "check", "output", "error", "file")]
    rows += map(_cells, sorted(checks, key=lambda check: check.passed))
    if not any(row[-1] for row in rows[1:]):
        rows = [row[:-1] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _cells(check: Check) -> tuple[str, ...]:
    return (
        "ok" if check.passed else "FAILED",
        title(check),
        check.output,
        finding(check),
        shown_file(check),
    )


def title(check: Check) -> str:
    """What was checked: the component, how it was run, and on what sizes if there are several."""
    return ", ".join(part for part in (check.name, check.way, check.inputs) if part)


def finding(check: Check) -> str:
    """What was found, in words: the error next to its limit, or why there is none."""
    if check.output == "files" and check.passed:
        return "as in the manifest" if check.name != "configuration" else "as in the checkpoint"
    if not check.passed:
        return check.note or str(check.worst or "nothing was measured")
    return str(check.worst)


def shown_file(check: Check) -> str:
    """The file that was run, the backend if it is not the default, and what it was compared with
    if that was not the reference."""
    form = f" ({check.form})" if check.form else ""
    backend = "" if check.backend in ("", DEFAULT) else f" on {check.backend}"
    other = f", compared with {check.compared_with}" if check.compared_with else ""
    return f"{check.file}{form}{backend}{other}"


def remarks(verification: Verification) -> list[str]:
    """What was said about rows that did not fail because of it, each once."""
    found = [f"{c.name}: {c.remark}" for c in verification.checks if c.remark]
    return list(dict.fromkeys(found))


def conclusion(verification: Verification) -> str:
    """One line: how many checks there were, which failed, and what was not checked."""
    count = len(verification.checks)
    names = dict.fromkeys(check.name for check in verification.failed)
    if not count:
        line = "FAILED: nothing was checked"
    elif names:
        line = f"FAILED: {len(verification.failed)} of {count} checks: {', '.join(names)}"
    else:
        line = f"passed: {count} checks"
    return "; ".join([line, *(f"not checked: {what}" for what in verification.not_checked)])
