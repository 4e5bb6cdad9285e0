"""The options and limits of a server."""

from __future__ import annotations

from dataclasses import dataclass, field

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """The options and limits of a server.

    Attributes:
      host, port: where it listens.
      api_keys: one of them is required in each request; none if it is empty.
      needs_key_beyond_loopback: whether only clients of this machine are served without keys. It is
        for servers that do not know where they listen; others check that at the start.
      allowed_hosts: names by which clients may call the server, besides loopback and addresses.
      cors_origins: origins of pages on other sites that may use the server.
      max_queue: jobs that wait at most.
      max_batch: images that are generated together at most.
      batch_window: seconds for which a job waits for others; see JobQueue.
      max_pixels: of one image. max_side: of its width and height.
      max_steps: of one image.
      max_images: of one request.
      max_prompt: characters of one text.
      max_body: bytes of a request's body. max_bodies: of all that are being received.
      max_input_pixels: of all input images of a request.
      max_held: bytes of the input images of all requests, from before they are decoded until their
        jobs end.
      max_connections: requests that are answered at a time; somewhat more may be open.
      timeout: seconds after which a job that is not done fails.
      body_seconds, header_seconds: in which a request's body and header must arrive.
      send_seconds: in which a client must take a part of a response.
      reconnect_seconds: after the last event stream of a job was closed by the client, in which
        another must be opened, or the job is cancelled.
      keep_seconds, keep_jobs, keep_bytes: how long, and how many, jobs that ended and their images
        are kept; those that are done are counted apart from the others.
      grace: seconds in which jobs may end when the server is stopped.
      memory_limit: bytes of all models that are open at a time; None for no limit.
      warm_up: generate an image with the first model before the server is ready.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    needs_key_beyond_loopback: bool = False
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    max_queue: int = 64
    max_batch: int = 4
    batch_window: float = 0.02
    max_pixels: int = 2048 * 2048
    max_side: int = 8192
    max_steps: int = 150
    max_images: int = 8
    max_prompt: int = 20_000
    max_body: int = 32 * MIB
    max_bodies: int = 256 * MIB
    max_input_pixels: int = 4096 * 4096
    max_held: int = 512 * MIB
    max_connections: int = 512
    timeout: float = 600.0
    body_seconds: float = 60.0
    header_seconds: float = 10.0
    send_seconds: float = 60.0
    reconnect_seconds: float = 5.0
    keep_seconds: float = 600.0
    keep_jobs: int = 256
    keep_bytes: int = 256 * MIB
    grace: float = 10.0
    memory_limit: int | None = None
    warm_up: bool = False

    def limits(self) -> dict[str, int | float]:
        """The limits of a request, by name."""
        names = (
            *("max_queue", "max_batch", "max_pixels", "max_side", "max_steps", "max_images"),
            *("max_prompt", "max_body", "max_input_pixels", "timeout"),
        )
        return {name: getattr(self, name) for name in names}
