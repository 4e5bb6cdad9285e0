"""sdexport serve."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sdexport.commands.output import echo
from sdexport.commands.serve_options import named_folders, serve_options
from sdexport.commands.shared_options import (
    backend_options,
    backends_of,
    print_json,
    session_arguments,
    trust_options,
    verify_hashes_option,
    without_none,
)
from sdexport.commands.verbosity import is_set, verbosity_options

if TYPE_CHECKING:
    from sdexport.server.image_service import ImageService
    from sdexport.server.server_metrics import ServerMetrics
    from sdexport.server.server_settings import ServerSettings

GB = 1_000_000_000


@click.command()
@click.argument("packages", metavar="PACKAGE [NAME=PACKAGE]...", nargs=-1, required=True)
@serve_options
@backend_options
@trust_options
@verify_hashes_option
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="When the server is ready, print one JSON document: address, models and process id.",
)
@verbosity_options
def serve(
    packages: tuple[str, ...],
    api_key_file: Path | None,
    lora_dir: Path | None,
    controlnets: tuple[str, ...],
    t2i_adapters: tuple[str, ...],
    ip_adapters: tuple[str, ...],
    memory_limit: float | None,
    batch_window_ms: float,
    log_format: str,
    vae_tile: int | None,
    backends: tuple[str, ...],
    session_options: tuple[tuple[str, Any], ...],
    engine_dir: Path | None,
    low_memory: bool,
    trusted_key: str | None,
    trust: str,
    verify_hashes: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Serve images over HTTP, with a queue, to many clients.

    Each PACKAGE is known by its folder's name, or by the NAME before it; the first is the default.
    The APIs are the server's own, OpenAI's and AUTOMATIC1111's; the address itself shows a page.
    """
    _check_installed()
    from sdexport import interrupts
    from sdexport.server.server_metrics import ServerMetrics
    from sdexport.server.server_process import run_server

    limit = None if memory_limit is None else round(memory_limit * GB)
    settings |= {"memory_limit": limit, "batch_window": batch_window_ms / 1000}
    made = _settings(api_key_file, settings)
    options = session_arguments(
        session_options, vae_tile=vae_tile, low_memory=low_memory, engine_dir=engine_dir
    )
    options |= {"trusted_key": trusted_key, "trust": trust, "verify_hashes": verify_hashes}
    options |= without_none(lora_dir=lora_dir)
    if backends:
        options["backend"] = backends_of(backends)
    adapters = {
        "controlnets": named_folders(controlnets, "--controlnet"),
        "t2i_adapters": named_folders(t2i_adapters, "--t2i-adapter"),
        "ip_adapters": named_folders(ip_adapters, "--ip-adapter"),
    }
    metrics = ServerMetrics()
    folders = named_folders(packages, "PACKAGE")
    service = _service(folders, options, lora_dir, adapters, made, metrics)
    _set_up_log(log_format)
    with interrupts.handled_by_block():
        number = run_server(service, metrics, partial(_say_ready, service, as_json))
    if number is not None:
        interrupts.raise_signal(number)


def _settings(api_key_file: Path | None, given: Mapping[str, Any]) -> ServerSettings:
    """The settings of the server.

    Raises: InvalidArgumentError: others can reach the server, and no key is required.
    """
    from sdexport.server.api_keys import read_keys
    from sdexport.server.server_settings import ServerSettings

    settings = ServerSettings(**given, api_keys=read_keys(api_key_file))
    _check_exposure(settings.host, settings.api_keys)
    return settings


def _service(
    packages: Mapping[str, Path],
    options: Mapping[str, Any],
    lora_dir: Path | None,
    adapters: Mapping[str, Mapping[str, Path]],
    settings: ServerSettings,
    metrics: ServerMetrics,
) -> ImageService:
    """The service, whose models are not open yet; `options` are those of load_pipeline."""
    from sdexport.server.image_service import ImageService
    from sdexport.server.job_tracing import observers_of
    from sdexport.server.model_store import ModelStore
    from sdexport.server.registered_names import RegisteredNames

    names = RegisteredNames(lora_dir, adapters)
    models = ModelStore(
        packages, options, memory_limit=settings.memory_limit, max_batch=settings.max_batch
    )
    return ImageService(models, names, settings, observers_of(metrics))


def _set_up_log(form: str) -> None:
    """Requests are logged with -v, and in JSON unless -q was given."""
    from sdexport.server.server_logging import set_up_server_logging

    level = logging.INFO if is_set("verbose") or form == "json" else logging.WARNING
    set_up_server_logging(form, logging.ERROR if is_set("quiet") else level)


def _say_ready(service: ImageService, as_json: bool, address: str) -> None:
    names = [model.name for model in service.models.models]
    if as_json:
        print_json({"address": address, "models": names, "pid": os.getpid()})
        sys.stdout.flush()
    else:
        echo(f"ready: {address} ({', '.join(names)})", err=True)


def _check_installed() -> None:
    """Raises: MissingDependencyError: a package of the extra is missing."""
    from sdexport.engines.errors import MissingDependencyError
    from sdexport.engines.messages import import_failure

    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"the server needs {error.name or 'FastAPI'}, which is not installed"
            f"{import_failure(error)}; run: pip install 'sdexport[serve]'"
        ) from error


def _check_exposure(host: str, keys: Iterable[str]) -> None:
    """Raises: InvalidArgumentError: others can reach the server, and no key is required."""
    import ipaddress

    from sdexport.engines.errors import InvalidArgumentError

    try:
        is_local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_local = host == "localhost"
    if is_local:
        return
    if not list(keys):
        raise InvalidArgumentError(
            f"--host {host}: others can reach the server, so it needs --api-key-file FILE"
        )
    logging.getLogger(__name__).warning(
        "--host %s: others can reach the server; whoever has a key can use it. Keys and images are "
        "not encrypted: put a proxy with TLS in front",
        host,
    )
