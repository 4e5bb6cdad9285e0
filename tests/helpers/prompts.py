"""Random prompts: any text, and text full of the characters that prompt styles read."""

from __future__ import annotations

from hypothesis import strategies as st

PIECES = (
    *("(", ")", "[", "]", "{", "}", "<", ">", ":", "|", "\\", '"', "+", "-", ".", ",", "=", " "),
    *(
        "a",
        "Bird",
        "é",
        "猫",
        "🙂",
        "\n",
        "\0\1",
        "1",
        "1.5",
        ":0.5]",
        ":1.2)",
        "nan",
        "inf",
        "1e999",
    ),
    *(" AND ", " BREAK ", "[a:b:", "[x|y", "<lora:x:1>", "embedding:x", ")++", ").and()", ".swap("),
    *(
        '("a", "b").blend(',
        "0.5, 1)",
        "no_normalize",
        ".attend(",
        "withLora(a,1)",
        "((",
        "))",
        "[[",
    ),
)
ANY_PROMPT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.lists(
    st.sampled_from(PIECES), max_size=30
).map("".join)
