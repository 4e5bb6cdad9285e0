"""What `benchmarks.gpu` runs, behind one interface: sessions, PyTorch, whole images."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_models import Model
from sdexport import Package, Pipeline
from sdexport.bench.workload import prompt_of
from sdexport.checkpoints.diffusers_folder import Checkpoint
from sdexport.checkpoints.diffusers_layout import tokenizer_folder
from sdexport.engines import PLAN_BACKENDS, Session
from sdexport.graphs.wrappers import Part, parts
from sdexport.runtime import schedulers
from sdexport.runtime.component_engines import open_component

TORCH, COMPILED = "torch", "torch-compile"
Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class Runner:
    """One graph with its inputs.

    Attributes:
      call: runs it; may return before the GPU has finished.
      outputs: runs it and returns the outputs.
      stream: the CUDA stream that it uses.
    """

    call: Callable[[], Any]
    outputs: Callable[[], Feeds]
    stream: Any = None


class Peers:
    """Opens a model's components with any backend, and keeps them open until `close`.

    Args:
      device: "cuda", or "cpu" to test the benchmark itself.
    """

    def __init__(
        self, model: Model, source: Checkpoint, package: Path, engine_dir: Path, device: str
    ) -> None:
        self.model, self.source, self.device = model, source, device
        self.package, self.engine_dir = package, engine_dir
        self.half = torch.float16 if device == "cuda" else torch.float32
        self.parts: Mapping[str, Part] = {part.name: part for part in parts(source.configs)}
        self._loaded: dict[str, Any] = {}
        self._on_device: dict[tuple[str, torch.dtype], Any] = {}
        self._open: dict[tuple[str, str], tuple[Session, Any]] = {}
        self._compiled: dict[str, Any] = {}
        # for the float32 reference; float16 is not affected
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False

    def close(self) -> None:
        """Free GPU memory; modules in host memory are kept."""
        with ExitStack() as last:
            for session, _ in self._open.values():
                last.callback(session.close)
            for kept in (self._open, self._on_device, self._compiled):
                kept.clear()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def feeds(self, component: str, batch: int, side: int) -> Feeds:
        """Random inputs for images of that width and height."""
        cells = side // self.source.downscale
        sizes = {"batch": batch, "sequence": 77, "height": cells, "width": cells}
        sizes |= {"image_height": side, "image_width": side}
        example = self.parts[component].example(sizes, seed=batch)
        return {name: tensor.numpy() for name, tensor in example.items()}

    def loaded(self, source: str) -> Any:
        """A module of the checkpoint in host memory, in float32."""
        if source not in self._loaded:
            self._loaded[source] = self.source.load(source)
        return self._loaded[source]

    def module(self, source: str, dtype: torch.dtype) -> Any:
        """A copy of a module on the device, in channels-last memory format."""
        key = source, dtype
        if key not in self._on_device:
            module = self.loaded(source)
            weights = {name: _moved(v, self.device, dtype) for name, v in _state(module).items()}
            self._on_device[key] = (
                _like(module, weights).to(memory_format=torch.channels_last).eval()
            )
        return self._on_device[key]

    def runner(self, backend: str, component: str, feeds: Feeds) -> Runner:
        """A component with its inputs, as a caller would run it in a loop.

        Sessions get arrays in host memory, with the embeddings bound, as in the denoising loop.
        PyTorch's inputs are on the device, and its outputs stay there.
        """
        if backend in (TORCH, COMPILED):
            return self._torch(component, feeds, self.half, compiled=backend == COMPILED)
        session, stream = self.session(component, backend)
        constants = {
            n: v for n, v in feeds.items() if n not in ("sample", "timestep", "latent_sample")
        }
        rest = {n: v for n, v in feeds.items() if n not in constants}
        bound = session.bind(**constants) if rest else session
        inputs = rest or feeds
        return Runner(lambda: bound.run(inputs), lambda: bound.run(inputs), stream)

    def reference(self, component: str, feeds: Feeds) -> Feeds:
        """PyTorch's outputs in float32, without TF32."""
        outputs = self._torch(component, feeds, torch.float32, compiled=False).outputs()
        if self.half != torch.float32:
            del self._on_device[self.parts[component].source, torch.float32]
            torch.cuda.empty_cache()
        return outputs

    def session(self, component: str, backend: str) -> tuple[Session, Any]:
        key = component, backend
        if key not in self._open:
            options: dict[str, Any] = {}
            stream = None
            if (
                backend == "onnxruntime-cuda"
            ):  # our own stream, so that events can be recorded in it
                stream = torch.cuda.Stream()
                pointer = str(stream.cuda_stream)
                options["provider_options"] = {"user_compute_stream": pointer}
            package = Package.load(self.package, verify=False)
            session: Any = open_component(
                package, component, backend, engine_dir=self.engine_dir, **options
            )
            if backend in PLAN_BACKENDS and self.device == "cuda":
                stream = torch.cuda.ExternalStream(session.stream.handle)
            self._open[key] = session, stream
        return self._open[key]

    def _torch(self, component: str, feeds: Feeds, dtype: torch.dtype, *, compiled: bool) -> Runner:
        part = self.parts[component]
        module = part.wrap(self.module(part.source, dtype)).eval()
        if compiled:
            module = self._compiled.setdefault(component, _compiled(module, self.device))
        tensors = {}
        for name, value in feeds.items():
            tensor = torch.from_numpy(value).to(self.device)
            # timesteps stay float32: float16 has too few digits for them
            data = tensor.is_floating_point() and name not in ("timestep", "time_ids")
            tensors[name] = tensor.to(dtype) if data else tensor

        def call() -> Any:
            with torch.inference_mode():
                return module(**tensors)

        def outputs() -> Feeds:
            result = call()
            values = result if isinstance(result, tuple) else (result,)
            names = [spec.name for spec in part.outputs]
            return {n: v.float().cpu().numpy() for n, v in zip(names, values, strict=True)}

        return Runner(call, outputs, torch.cuda.current_stream() if self.device == "cuda" else None)

    def image_function(self, backend: str) -> Callable[[int, int], np.ndarray]:
        """A function from (steps, number of the prompt) to an image, (side, side, 3) uint8."""
        if backend in (TORCH, COMPILED):
            return self._diffusers(compiled=backend == COMPILED)
        pipe = Pipeline(
            Package.load(self.package, verify=False),
            backend,
            sessions={name: self.session(name, backend)[0] for name in self._text_to_image()},
        )

        def generate(steps: int, i: int) -> np.ndarray:
            arguments = self._arguments(steps, i)
            result = pipe(**arguments, scheduler=self.model.scheduler, seed=0)
            return np.asarray(result.images[0])

        return generate

    def _arguments(self, steps: int, i: int) -> dict[str, Any]:
        """Arguments of an image; a new prompt each time, because embeddings are cached."""
        return {
            "prompt": prompt_of(i),
            "height": self.model.side,
            "width": self.model.side,
            "num_inference_steps": steps,
            "guidance_scale": self.model.guidance_scale,
        }

    def _text_to_image(self) -> list[str]:
        return [name for name in self.parts if name != "vae_encoder"]

    def _diffusers(self, *, compiled: bool) -> Callable[[int, int], np.ndarray]:
        import diffusers
        from transformers import CLIPTokenizer

        components: dict[str, Any] = {}
        for name in self.source.text_encoders:
            where = tokenizer_folder(name)
            components[name] = self.module(name, self.half)
            components[where] = CLIPTokenizer.from_pretrained(str(self.source.folder / where))
        unet = self.module("unet", self.half)
        components["unet"] = _compiled(unet, self.device) if compiled else unet
        components["vae"] = self.module("vae", self.half)
        scheduler = getattr(diffusers, schedulers.class_name(self.model.scheduler))
        components["scheduler"] = scheduler.from_config(dict(self.source.scheduler_config))
        if "text_encoder_2" not in components:
            components |= {"safety_checker": None, "feature_extractor": None}
            components["requires_safety_checker"] = False
        pipe = getattr(diffusers, self.source.index["_class_name"])(**components)
        pipe.set_progress_bar_config(disable=True)

        def generate(steps: int, i: int) -> np.ndarray:
            generator = torch.Generator().manual_seed(0)
            result = pipe(**self._arguments(steps, i), generator=generator, output_type="np")
            return (result.images[0] * 255).round().astype(np.uint8)

        return generate


def _state(module: Any) -> dict[str, Any]:
    """Parameters and buffers, including those that a state_dict leaves out."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _moved(value: Any, device: str, dtype: torch.dtype) -> Any:
    return value.detach().to(device, dtype if value.is_floating_point() else value.dtype)


def _like(module: Any, weights: Mapping[str, Any]) -> Any:
    """The module's structure with other weights; the original keeps its own."""
    memo: dict[int, Any] = {id(v): weights[name] for name, v in _state(module).items()}
    for name, value in _state(module).items():
        if isinstance(value, torch.nn.Parameter):
            memo[id(value)] = torch.nn.Parameter(weights[name], requires_grad=False)
    return copy.deepcopy(module, memo=memo)


def _compiled(module: Any, device: str) -> Any:
    options = {"mode": "max-autotune"} if device == "cuda" else {"backend": "eager"}
    return torch.compile(module, dynamic=False, **options)
