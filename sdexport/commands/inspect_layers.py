"""The lines of sdexport inspect --layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from sdexport.engines.messages import plain


def layer_lines(report: Mapping[str, Any]) -> list[str]:
    """What the layers of an engine do, from layer_report."""
    if "not_listed" in report:
        return [f"  layers are not listed: {report['not_listed']}"]
    lines: list[str] = []
    for index, profile in enumerate(report["profiles"]):
        lines.append(f"  layers for profile {index}: {profile['layers']}")
        lines += [f"    {title}: {_counts(profile[title])}" for title in ("kinds", "dtypes")]
        lines += _attention_lines(profile)
    return lines


def _attention_lines(profile: Mapping[str, Any]) -> list[str]:
    total, fused = profile["attention"]["total"], profile["attention"]["fused"]
    if not total:
        return []
    reasons = Counter(each["reason"] for each in profile["separate"])
    first = {each["reason"]: each["node"] for each in reversed(profile["separate"])}
    return [
        f"    attention in one kernel: {fused} of {total}",
        *(
            f"      {count} not, from {plain(first[reason])} on: {reason}"
            for reason, count in reasons.most_common()
        ),
    ]


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {plain(name)}" for name, count in counts.items())
