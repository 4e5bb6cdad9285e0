"""Special and added tokens as a tokenizer's files describe them.

Every function raises ValueError for an entry that transformers would not write.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdexport.engines.messages import shown
from sdexport.runtime.text.added_tokens import AddedToken

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
MAX_ID = 2**31 - 1
_ROLES = {
    "bos_token": BOS,
    "eos_token": EOS,
    "unk_token": EOS,
    "sep_token": None,
    "pad_token": EOS,
    "cls_token": None,
    "mask_token": None,
}
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


def is_id(value: Any) -> bool:
    """Whether a value from a file is a token id: an integer from 0 to MAX_ID."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_ID


def from_added_tokens_decoder(entries: Any) -> dict[int, AddedToken]:
    """Tokens by id from tokenizer_config.json: {"49408": {"content": ..., flags}}."""
    name = "added_tokens_decoder"
    if not isinstance(entries, dict):
        raise ValueError(f"{name}: expected a JSON object, got {shown(entries)}")
    added = {}
    for key, entry in entries.items():
        number = int(key) if key.isascii() and key.isdigit() and len(key) < 12 else -1
        if not is_id(number):
            raise ValueError(f"{name}: {shown(key)} is not an id")
        added[number] = _token(entry, name)
    return added


def from_added_tokens_json(
    entries: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[int, AddedToken]:
    """Tokens by id from added_tokens.json: {"<cat-toy>": 49408}.

    Args:
      config: says which of them are special tokens.
    """
    special = {_content(config[role]) for role in _ROLES if config.get(role)}
    special |= {token.content for token in special_tokens(config)}
    added = {}
    for content, number in entries.items():
        if not is_id(number):
            raise ValueError(
                f"added_tokens.json: {shown(content)} has no valid id: {shown(number)}"
            )
        added[number] = AddedToken(content, normalized=content not in special)
    if len(added) != len(entries):
        raise ValueError("added_tokens.json assigns one id to several tokens")
    return added


def from_tokenizer_json(entries: list[Any]) -> dict[int, AddedToken]:
    """Tokens by id from tokenizer.json: [{"id": 49408, "content": ..., flags}]."""
    name = "added_tokens"
    added = {}
    for entry in entries:
        token = _token(entry, name)
        number = entry.get("id")
        if not is_id(number):
            raise ValueError(f"{name}: {shown(token.content)} has no valid id: {shown(number)}")
        if number in added:
            raise ValueError(f"{name}: id {number} appears more than once")
        added[number] = token
    return added


def mark_special(special_tokens_map: Mapping[str, Any]) -> dict[str, Any]:
    """special_tokens_map.json, in which every token is a special token."""
    return {
        key: value | {"special": True} if isinstance(value, dict) else value
        for key, value in special_tokens_map.items()
    }


def tokens_by_role(config: Mapping[str, Any]) -> dict[str, AddedToken]:
    """Tokens by role: "bos_token" and so on, and roles of the tokenizer's own.

    Roles that are missing or null have CLIP's default, where there is one.
    """
    tokens = {}
    for role, default in _ROLES.items():
        value = config.get(role, default)
        value = default if value is None else value
        if value is not None:
            tokens[role] = _special(value, role)
    for role, value in config.items():
        if role.endswith("_token") and role not in _ROLES and isinstance(value, str):
            tokens[role] = _special(value, role)
    return tokens


def required(tokens: Mapping[str, AddedToken]) -> set[str]:
    """The tokens that a tokenizer cannot do without, from `tokens_by_role`."""
    return {tokens[role].content for role, default in _ROLES.items() if default}


def special_tokens(config: Mapping[str, Any]) -> list[AddedToken]:
    """Special tokens without a role, from tokenizer_config.json."""
    name = "extra_special_tokens"
    extra = config.get(name) or config.get("additional_special_tokens") or []
    if not isinstance(extra, (list, dict)):
        raise ValueError(f"{name}: expected a list, got {shown(extra)}")
    values = extra if isinstance(extra, list) else extra.values()
    return [_special(value, name) for value in values]


def _special(value: Any, name: str) -> AddedToken:
    if isinstance(value, str):
        if not value:
            raise ValueError(f"{name}: expected a token, got an empty string")
        return AddedToken(value, normalized=False)
    return _token(value, name)


def _token(entry: Any, name: str) -> AddedToken:
    content = _content(entry)
    if not isinstance(entry, dict) or not content:
        raise ValueError(f"{name}: expected a token with content, got {shown(entry)}")
    flags = {flag: entry.get(flag) for flag in (*_FLAGS, "special")}
    wrong = [flag for flag, value in flags.items() if value not in (None, True, False)]
    if wrong:
        raise ValueError(
            f"{name}: {wrong[0]}: expected true or false, got {shown(flags[wrong[0]])}"
        )
    if flags["normalized"] is None:
        flags["normalized"] = not flags["special"]
    return AddedToken(content, **{flag: bool(flags[flag]) for flag in _FLAGS})


def _content(entry: Any) -> str:
    value = entry.get("content") if isinstance(entry, dict) else entry
    return value if isinstance(value, str) else ""
