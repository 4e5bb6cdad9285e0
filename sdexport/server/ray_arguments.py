"""The arguments of sdexport.server.ray:app, from `serve run` or a configuration of Ray Serve."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import one_line
from sdexport.engines.session_options import SESSION_OPTIONS
from sdexport.runtime.component_backends import (
    Backends,
    BackendSpec,
    parse_backends,
    parse_option,
)
from sdexport.server.api_keys import read_keys
from sdexport.server.model_store import ModelStore
from sdexport.server.registered_names import RegisteredNames, folders_by_name
from sdexport.server.server_settings import ServerSettings

_GB = 1_000_000_000


def _texts(value: Any) -> Any:
    """A list of texts, also from one with commas."""
    return [part for part in value.split(",") if part] if isinstance(value, str) else value


def _folders(value: Any) -> Any:
    """Folders by name, from a mapping, or from texts FOLDER or NAME=FOLDER."""
    texts = _texts(value)
    if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
        return folders_by_name(texts, "expected packages")
    return value


def _backends(value: Any) -> Any:
    """Backends as texts BACKEND or COMPONENT=BACKEND; a comma is part of one."""
    return [value] if isinstance(value, str) else value


def _options(value: Any) -> Any:
    """Options by name, also from NAME=VALUE, several with commas."""
    return dict(map(parse_option, _texts(value))) if isinstance(value, str) else value


Texts = Annotated[list[str], BeforeValidator(_texts)]
Folders = Annotated[dict[str, Path], BeforeValidator(_folders)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Seconds = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


class RayArguments(BaseModel):
    """What is served, with which limits, on how many replicas.

    Attributes:
      package: packages by name; also FOLDER or NAME=FOLDER, several with commas. The first is the
        default. All nodes must have them at the same path.
      lora_dir, controlnet, t2i_adapter, ip_adapter, backend, tile, low_memory, engine_dir,
        trusted_key, trust, verify_hashes, api_key_file, allowed_host, cors_origin, and the limits:
        as the options of `sdexport serve`.
      options: of the backends' sessions, such as threads; default as many threads as processors of
        a replica, at least one; as many as the machine has if num_cpus is 0.
      num_cpus, num_gpus: of each replica. server_cpus: of the process that has the queue.
      server_on_head: whether that process runs on the head node alone.
      min_replicas, max_replicas: how many there are; more than the least while batches wait.
      upscale_delay_s, downscale_delay_s: for how long, before one is added or removed.
      max_models: packages that a replica has open at a time; default all.
      graceful_shutdown_timeout_s: in which a replica may end its batch when it is removed.
    """

    model_config = ConfigDict(extra="forbid")

    package: Annotated[Folders, Field(min_length=1)]
    lora_dir: Path | None = None
    controlnet: Folders = {}
    t2i_adapter: Folders = {}
    ip_adapter: Folders = {}
    backend: Annotated[list[str] | dict[str, str], BeforeValidator(_backends)] = []
    options: Annotated[dict[str, Any], BeforeValidator(_options)] = {}
    tile: int | None = None
    low_memory: bool = False
    engine_dir: Path | None = None
    trusted_key: str | None = None
    trust: str = "warn"
    verify_hashes: bool = False

    api_key_file: Path | None = None
    allowed_host: Texts = []
    cors_origin: Texts = []
    max_queue: Count = ServerSettings.max_queue
    max_batch: Annotated[int, Field(ge=1, le=64)] = ServerSettings.max_batch
    batch_window_ms: Annotated[float, Field(ge=0, le=10_000, allow_inf_nan=False)] = (
        1000 * ServerSettings.batch_window
    )
    timeout: Annotated[float, Field(ge=0.001, le=1e6, allow_inf_nan=False)] = ServerSettings.timeout
    grace: Seconds = ServerSettings.grace
    max_pixels: Annotated[int, Field(ge=1, le=2**28)] = ServerSettings.max_pixels
    max_steps: Annotated[int, Field(ge=1, le=1000)] = ServerSettings.max_steps
    max_images: Annotated[int, Field(ge=1, le=64)] = ServerSettings.max_images
    max_body: Annotated[int, Field(ge=1024, le=2**30)] = ServerSettings.max_body
    memory_limit: Annotated[float, Field(ge=0.001, le=1e6)] | None = None
    warm_up: bool = False

    num_cpus: Annotated[float, Field(ge=0, le=4096, allow_inf_nan=False)] = 1.0
    num_gpus: Annotated[float, Field(ge=0, le=64, allow_inf_nan=False)] = 0.0
    server_cpus: Annotated[float, Field(ge=0, le=4096, allow_inf_nan=False)] = 0.0
    server_on_head: bool = True
    min_replicas: Annotated[int, Field(ge=0, le=10_000)] = 1
    max_replicas: Annotated[int, Field(ge=1, le=10_000)] = 1
    upscale_delay_s: Seconds = 10.0
    downscale_delay_s: Seconds = 300.0
    max_models: Annotated[int, Field(ge=1, le=1000)] | None = None
    graceful_shutdown_timeout_s: Seconds = 120.0

    @property
    def settings(self) -> ServerSettings:
        """The settings of the server.

        Raises: InvalidArgumentError: keys that are easy to guess. FileNotFoundError.
        """
        same = ("max_queue", "max_batch", "timeout", "grace", "max_pixels", "max_steps")
        further = ("max_images", "max_body", "warm_up")
        return ServerSettings(
            api_keys=read_keys(self.api_key_file),
            needs_key_beyond_loopback=True,
            allowed_hosts=tuple(self.allowed_host),
            cors_origins=tuple(self.cors_origin),
            batch_window=self.batch_window_ms / 1000,
            memory_limit=self.memory_bytes,
            **{name: getattr(self, name) for name in (*same, *further)},
        )

    def absolute(self) -> dict[str, Any]:
        """The folders and files as absolute paths, as replicas may have another present folder."""
        found: dict[str, Any] = {}
        for name in ("package", "controlnet", "t2i_adapter", "ip_adapter"):
            found[name] = {key: path.absolute() for key, path in getattr(self, name).items()}
        for name in ("lora_dir", "engine_dir", "api_key_file"):
            path = getattr(self, name)
            found[name] = None if path is None else path.absolute()
        return found

    @property
    def memory_bytes(self) -> int | None:
        """Of all open models of a replica."""
        return None if self.memory_limit is None else round(self.memory_limit * _GB)

    @property
    def names(self) -> RegisteredNames:
        """The LoRAs and adapters that requests may name.

        Raises: see RegisteredNames.
        """
        adapters = {
            "controlnets": self.controlnet,
            "t2i_adapters": self.t2i_adapter,
            "ip_adapters": self.ip_adapter,
        }
        return RegisteredNames(self.lora_dir, adapters)

    @property
    def backends(self) -> Backends:
        """The backend, or backends by component."""
        if isinstance(self.backend, dict):
            return self.backend
        return parse_backends(self.backend) if self.backend else "onnxruntime"

    def load_options(self) -> dict[str, Any]:
        """Keyword arguments of load_pipeline."""
        found = {
            "backend": self.backends,
            "vae_tile": self.tile,
            "low_memory": self.low_memory or None,
            "engine_dir": self.engine_dir,
            "lora_dir": self.lora_dir,
            "trusted_key": self.trusted_key,
            "trust": self.trust,
            "verify_hashes": self.verify_hashes,
        }
        return self._threads() | {k: v for k, v in found.items() if v is not None} | self.options

    def models(self, kind: type[ModelStore] = ModelStore) -> Any:
        """The packages, as a store of some kind.

        Raises: see ModelStore.
        """
        return kind(
            self.package,
            self.load_options(),
            memory_limit=self.memory_bytes,
            max_batch=self.max_batch,
        )

    def _threads(self) -> dict[str, int]:
        """As many threads as processors, as a replica does not have the machine for itself."""
        backends = self.backends
        texts = [backends] if isinstance(backends, str) else list(backends.values())
        takes = any("threads" in SESSION_OPTIONS[BackendSpec.parse(t).name] for t in texts)
        return {"threads": max(1, int(self.num_cpus))} if takes and self.num_cpus > 0 else {}


def ray_arguments(given: Mapping[str, Any] | RayArguments) -> RayArguments:
    """Arguments as Ray Serve passes them, checked.

    Raises: InvalidArgumentError: one that is unknown, missing or out of range.
    """
    if isinstance(given, RayArguments):
        return given
    try:
        found = RayArguments.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "arguments"
        text = f"{one_line(place, 200)}: {one_line(first['msg'], 300)}"
        raise InvalidArgumentError(text) from None
    if found.min_replicas > found.max_replicas:
        raise InvalidArgumentError(
            f"min_replicas ({found.min_replicas}) is more than max_replicas ({found.max_replicas})"
        )
    found.load_options()
    return found
