"""sdexport sign."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from sdexport.commands.output import echo
from sdexport.commands.progress import progress
from sdexport.commands.shared_options import FILE, FOLDER, json_option, print_json
from sdexport.commands.verbosity import verbosity_options

LONGEST_PASSWORD = 1024
"""Bytes, as in minisign."""


@click.command()
@click.argument("package", type=FOLDER, required=False)
@click.option("--key", type=FILE, help="Secret key, of minisign or made by --generate-key.")
@click.option(
    "--generate-key",
    type=FILE,
    metavar="FILE",
    help="Write a new secret key to FILE, and its public key to a file that ends in .pub.",
)
@click.option(
    "--password-file",
    type=FILE,
    help="Read the secret key's password from the first line of this file.",
)
@click.option("--no-password", is_flag=True, help="Do not protect the new key by a password.")
@json_option
@verbosity_options
def sign(
    package: Path | None,
    key: Path | None,
    generate_key: Path | None,
    password_file: Path | None,
    no_password: bool,
    as_json: bool,
) -> None:
    """Sign a package, so that others can check who made it.

    The hash of every file is checked, and PACKAGE/sdexport.json.minisig is written: a signature of
    sdexport.json, which holds the hashes of all other files, in the format of minisign. --key of
    the commands that read a package requires it. Engines that are built later are not signed.
    """
    _check_arguments(package, key, generate_key, password_file, no_password)
    if generate_key is not None:
        _generate(generate_key, password_file, no_password=no_password, as_json=as_json)
    else:
        assert package is not None and key is not None
        _sign(package, key, password_file, as_json=as_json)


def _check_arguments(
    package: Path | None,
    key: Path | None,
    generate_key: Path | None,
    password_file: Path | None,
    no_password: bool,
) -> None:
    """Raises: click.UsageError: options are missing or exclude each other."""
    if generate_key is not None and (package is not None or key is not None):
        raise click.UsageError("--generate-key only makes a key; sign with it afterwards")
    if generate_key is None and package is None:
        raise click.UsageError("give a PACKAGE and --key, or --generate-key")
    if generate_key is None and key is None:
        raise click.UsageError("--key is missing: the secret key to sign with")
    if no_password and generate_key is None:
        raise click.UsageError("--no-password is for --generate-key")
    if no_password and password_file is not None:
        raise click.UsageError("--password-file and --no-password exclude each other")


def _generate(path: Path, password_file: Path | None, *, no_password: bool, as_json: bool) -> None:
    from sdexport.runtime.packages.key_files import write_key_pair

    password = None if no_password else _password(password_file, confirm=True)
    public, public_path = write_key_pair(path, password)
    if as_json:
        values = {"secret_key": str(path), "public_key": str(public_path)}
        print_json(values | {"key_id": public.key_id, "public_key_base64": public.to_base64()})
        return
    echo(f"secret key: {path}, to keep secret")
    echo(f"public key: {public_path}, or --key {public.to_base64()}")


def _sign(package: Path, key: Path, password_file: Path | None, *, as_json: bool) -> None:
    from sdexport.runtime.packages.minisign import SecretKey
    from sdexport.runtime.packages.package import Package
    from sdexport.runtime.packages.signature import sign_package

    secret = SecretKey.read(key, lambda: _password(password_file, confirm=False))
    with progress(None, "hashes", "B") as shown:
        loaded = Package.load(package, on_bytes=shown.advance)
    path = sign_package(loaded, secret)
    if as_json:
        values = {"signature": str(path), "package": str(package), "digest": loaded.digest}
        print_json(values | {"key_id": secret.public.key_id})
    else:
        echo(f"{path}: signed with key {secret.public.key_id}")


def _password(file: Path | None, *, confirm: bool) -> str:
    """The password from a file, or typed in.

    Raises: InvalidArgumentError: there is no terminal and no file.
    """
    from sdexport.engines.errors import InvalidArgumentError
    from sdexport.engines.guarded_files import read_guarded

    if file is not None:
        content = read_guarded(file, error=InvalidArgumentError, limit=LONGEST_PASSWORD)
        return content.decode(errors="surrogateescape").split("\n", 1)[0].rstrip("\r")
    if not _is_terminal():
        otherwise = " or --no-password" if confirm else ""
        raise InvalidArgumentError(
            f"the secret key's password is needed: give --password-file FILE{otherwise}"
        )
    try:
        typed: str = click.prompt(
            "Password of the secret key", hide_input=True, confirmation_prompt=confirm, err=True
        )
    except SystemExit:  # of SIGTERM; click ends the line after Ctrl-C alone
        echo(err=True)
        raise
    return typed


def _is_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()
