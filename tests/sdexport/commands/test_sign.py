"""sdexport sign, and --key and --trust of the commands that read a package."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from sdexport.cli import main
from sdexport.demo_model import PACKAGE_DIR

pytest.importorskip("cryptography", reason="the extra sdexport[sign] is not installed")


def call(*arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], input=stdin)


def assert_error(result: Result, message: str) -> None:
    assert result.exit_code == 1 and result.stdout == "", result.output
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    assert message in result.stderr


@pytest.fixture
def key(tmp_path: Path) -> Path:
    result = call("sign", "--generate-key", tmp_path / "my.key", "--no-password")
    assert result.exit_code == 0 and f"public key: {tmp_path / 'my.pub'}" in result.stdout
    return tmp_path / "my.key"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return shutil.copytree(PACKAGE_DIR, tmp_path / "package", copy_function=shutil.copyfile)


def test_sign_and_require_the_signature(package: Path, key: Path, tmp_path: Path) -> None:
    public = key.with_suffix(".pub")
    assert re.search(r"^signed +no$", call("inspect", package).stdout, re.MULTILINE)
    assert_error(
        call("inspect", package, "--key", public), "is not signed: it has no sdexport.json"
    )
    result = call("sign", package, "--key", key)
    assert result.exit_code == 0 and "sdexport.json.minisig: signed with key " in result.stdout
    assert "not checked: --key checks it" in call("inspect", package).stdout
    shown = call("inspect", package, "--key", public).stdout
    assert re.search(r"^signed +with key .+$", shown, re.MULTILINE)
    assert "timestamp:" in shown and "not checked" not in shown
    text = public.read_text().split("\n")[1]
    out = tmp_path / "a.png"
    base = ("generate", package, "a red circle", "--steps", 1, "-o", out)
    assert call(*base, "--key", text, "--trust", "signed").exit_code == 0
    other = tmp_path / "other.key"
    assert call("sign", "--generate-key", other, "--no-password").exit_code == 0
    out.unlink()
    for command in (base, ("verify", package), ("build", package, "--backend", "onnxruntime")):
        assert_error(call(*command, "--key", other.with_suffix(".pub")), "was made with key ")
    assert not out.exists() and not (package / "engines").exists()


def test_verify_names_the_key(package: Path, key: Path) -> None:
    call("sign", package, "--key", key)
    result = call("verify", package, "--key", key.with_suffix(".pub"))
    assert result.exit_code == 0 and result.stdout.startswith("signed with key ")


def test_json(package: Path, key: Path) -> None:
    signed = json.loads(call("sign", package, "--key", key, "--json").stdout)
    made = json.loads(call("inspect", package, "--json").stdout)["signature"]
    assert made == {"checked": False, "key_id": signed["key_id"]}
    arguments = ("--generate-key", key.with_name("b.key"), "--no-password", "--json")
    pair = json.loads(call("sign", *arguments).stdout)
    assert Path(pair["public_key"]).read_text().endswith(f"{pair['public_key_base64']}\n")


def test_sign_checks_the_package_first(package: Path, key: Path) -> None:
    path = package / "unet" / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    assert_error(call("sign", package, "--key", key), "is truncated or altered")
    assert not (package / "sdexport.json.minisig").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a PACKAGE and --key, or --generate-key"),
        (["package"], "--key is missing: the secret key to sign with"),
        (["package", "--generate-key", "a.key"], "--generate-key only makes a key"),
        (["--key", "a.key", "--generate-key", "b.key"], "--generate-key only makes a key"),
        (["package", "--key", "a.key", "--no-password"], "--no-password is for --generate-key"),
        (
            ["--generate-key", "a.key", "--no-password", "--password-file", "p"],
            "exclude each other",
        ),
    ],
)
def test_usage_of_sign(arguments: list[str], message: str) -> None:
    result = call("sign", *arguments)
    assert result.exit_code == 2 and message in result.stderr


def test_passwords(
    package: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sdexport.runtime.packages.minisign import SecretKey

    secret = SecretKey.read(key, lambda: "")
    locked = tmp_path / "locked.key"
    locked.write_text(secret.to_text("two words", operations=2**15, memory=2**20))
    assert_error(call("sign", package, "--key", locked), "give --password-file FILE")
    (tmp_path / "password").write_text("two words\nnot this line\n")
    arguments = ("sign", package, "--key", locked, "--password-file")
    assert call(*arguments, tmp_path / "password").exit_code == 0
    (tmp_path / "wrong").write_text("two word\n")
    assert_error(call(*arguments, tmp_path / "wrong"), "the password is wrong")
    assert_error(call(*arguments, tmp_path / "none"), "No such file")
    monkeypatch.setattr("sdexport.commands.sign._is_terminal", lambda: True)
    monkeypatch.setattr(click, "prompt", lambda *args, **options: "two words")
    assert call("sign", package, "--key", locked).exit_code == 0


def test_generated_keys_need_a_word_about_passwords(tmp_path: Path) -> None:
    assert_error(
        call("sign", "--generate-key", tmp_path / "a.key"),
        "give --password-file FILE or --no-password",
    )
    (tmp_path / "empty").write_text("")
    assert_error(
        call("sign", "--generate-key", tmp_path / "a.key", "--password-file", tmp_path / "empty"),
        "the password is empty",
    )
    assert not (tmp_path / "a.key").exists()
