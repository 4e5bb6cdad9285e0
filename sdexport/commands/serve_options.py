"""The options of `sdexport serve`. The name of a parameter is that of a setting of the server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import click

from sdexport.commands.shared_options import FILE, FOLDER, with_options
from sdexport.server.server_settings import ServerSettings

_COUNT = click.IntRange(1, 1_000_000)
ADDRESS_OPTIONS = (
    click.option(
        "--host", default=ServerSettings.host, show_default=True, help="Address to listen on."
    ),
    click.option(
        "--port",
        type=click.IntRange(0, 65535),
        default=ServerSettings.port,
        show_default=True,
        help="Port to listen on; 0 takes a free one.",
    ),
    click.option(
        "--api-key-file",
        type=FILE,
        help="File with keys, one a line; every request needs one of them. Required if --host is "
        "not of this machine alone.",
    ),
    click.option(
        "--allowed-host",
        "allowed_hosts",
        multiple=True,
        metavar="NAME",
        help="A name by which clients may call the server. Addresses and localhost always are "
        "allowed. Repeatable.",
    ),
    click.option(
        "--cors-origin",
        "cors_origins",
        multiple=True,
        metavar="ORIGIN",
        help="Let pages of this origin, such as https://example.org, use the server. Repeatable.",
    ),
)
QUEUE_OPTIONS = (
    click.option(
        "--max-queue",
        type=_COUNT,
        default=ServerSettings.max_queue,
        show_default=True,
        help="Jobs that wait at most.",
    ),
    click.option(
        "--max-batch",
        type=click.IntRange(1, 64),
        default=ServerSettings.max_batch,
        show_default=True,
        help="Images that are generated together at most.",
    ),
    click.option(
        "--batch-window-ms",
        type=click.FloatRange(0, 10_000),
        default=round(1000 * ServerSettings.batch_window),
        show_default=True,
        help="While several clients are served, how long a job waits for others to run with it.",
    ),
    click.option(
        "--timeout",
        type=click.FloatRange(0.001, 1e6),
        default=int(ServerSettings.timeout),
        show_default=True,
        metavar="SECONDS",
        help="A job that is not done after this time fails.",
    ),
    click.option(
        "--grace",
        type=click.FloatRange(0, 1e6),
        default=int(ServerSettings.grace),
        show_default=True,
        metavar="SECONDS",
        help="How long jobs may go on after Ctrl-C or SIGTERM; a second signal cancels them.",
    ),
)
LIMIT_OPTIONS = (
    click.option(
        "--max-pixels",
        type=click.IntRange(1, 2**28),
        default=ServerSettings.max_pixels,
        show_default=True,
        help="Pixels of an image at most.",
    ),
    click.option(
        "--max-steps",
        type=click.IntRange(1, 1000),
        default=ServerSettings.max_steps,
        show_default=True,
        help="Steps of an image at most.",
    ),
    click.option(
        "--max-images",
        type=click.IntRange(1, 64),
        default=ServerSettings.max_images,
        show_default=True,
        help="Images of a request at most.",
    ),
    click.option(
        "--max-body",
        type=click.IntRange(1024, 2**30),
        default=ServerSettings.max_body,
        show_default=True,
        help="Bytes of a request at most.",
    ),
    click.option(
        "--memory-limit",
        type=click.FloatRange(0.001, 1e6),
        metavar="GB",
        help="Close the models that were used least lately when all open ones are estimated to "
        "need more. Default: none are closed.",
    ),
)
MODEL_OPTIONS = (
    click.option(
        "--warm-up",
        is_flag=True,
        help="Generate an image of one step with the first model before the server is ready.",
    ),
    click.option(
        "--lora-dir",
        type=FOLDER,
        help="LoRAs that requests may name, by the names of their files.",
    ),
    click.option(
        "--controlnet",
        "controlnets",
        multiple=True,
        metavar="[NAME=]PACKAGE",
        help="A ControlNet that requests may name. Repeatable.",
    ),
    click.option(
        "--t2i-adapter",
        "t2i_adapters",
        multiple=True,
        metavar="[NAME=]PACKAGE",
        help="A T2I-Adapter that requests may name. Repeatable.",
    ),
    click.option(
        "--ip-adapter",
        "ip_adapters",
        multiple=True,
        metavar="[NAME=]PACKAGE",
        help="An IP-Adapter that requests may name. Repeatable.",
    ),
    click.option(
        "--tile", "vae_tile", type=int, help="Let the VAE work in tiles of this many pixels."
    ),
    click.option(
        "--log-format",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        help="The form of the log on stderr; json logs every request.",
    ),
)


def serve_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add all of these options to a command."""
    groups = (ADDRESS_OPTIONS, QUEUE_OPTIONS, LIMIT_OPTIONS, MODEL_OPTIONS)
    for group in reversed(groups):
        command = with_options(command, group)
    return command


def named_folders(texts: Sequence[str], what: str) -> dict[str, Path]:
    """Folders by name, from values NAME=FOLDER or FOLDER, which is known by its own name.

    Raises: click.UsageError: two have the same name, or a name that cannot be one.
    """
    from sdexport.engines.errors import InvalidArgumentError
    from sdexport.server.registered_names import folders_by_name

    try:
        return folders_by_name(texts, what)
    except InvalidArgumentError as error:
        raise click.UsageError(str(error)) from error
