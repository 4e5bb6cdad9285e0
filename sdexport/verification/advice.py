"""What to do about checks that failed."""

from __future__ import annotations

from sdexport.verification.report import Check
from sdexport.verification.verification_result import Verification

_AGAIN = "copy the package again from where it came from, or export the checkpoint again"


def advice(verification: Verification) -> list[str]:
    """A sentence for each cause that the failed checks point to, the likeliest first."""
    failed = verification.failed
    found: list[str] = []
    if altered := [check.name for check in failed if check.output == "files"]:
        found.append(f"{_listed(altered)}: files are not those that were exported; {_AGAIN}")
    for check in failed:
        if check.form:
            found.append(
                f"{check.name}: delete {check.file}, and build it again: sdexport build PACKAGE "
                f"--backend {check.backend.partition(',')[0]} --component {check.name}"
            )
    plain = {check.name for check in failed if _is_plain(check)}
    if graphs := sorted(plain - {"image", "configuration", *altered}):
        found.append(
            f"{_listed(graphs)}: the weights or the reference outputs were altered, or this "
            f"backend computes something else here: try another --backend; if that fails too, "
            f"{_AGAIN}"
        )
    for check in failed:
        if check.way and not check.form and check.name not in plain:
            found.append(
                f"{check.name} with {check.way}: {check.backend} computes something else than "
                "without; report this as a bug of sdexport, and use another --backend meanwhile"
            )
    if [check.name for check in failed] == ["image"]:
        found.append(
            "image: every graph is right by itself, so the scheduler's configuration, a tokenizer "
            f"or the reference image was altered; {_AGAIN}"
        )
    return list(dict.fromkeys(found))


def _is_plain(check: Check) -> bool:
    """Whether it is about the package's own graph, run plainly on the reference inputs."""
    return not (check.way or check.form or check.output == "files")


def _listed(names: list[str]) -> str:
    return ", ".join(dict.fromkeys(names))
