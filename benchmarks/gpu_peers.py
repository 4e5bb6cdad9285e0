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
from benchmarks.gpu_names import COMPILED, ORT, ORT_GRAPH, TORCH_GRAPH, TORCHES
from benchmarks.gpu_ort import GraphSession
from benchmarks.gpu_torch_graph import GraphedForward
from sdexport import Package, Pipeline
from sdexport.bench.workload import prompt_of
from sdexport.checkpoints.diffusers_folder import Checkpoint
from sdexport.checkpoints.diffusers_layout import tokenizer_folder
from sdexport.engines import PLAN_BACKENDS, Session
from sdexport.graphs.wrappers import Part, parts
from sdexport.runtime import schedulers
from sdexport.runtime.component_engines import open_component

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
    """Opens a model's components with any contender, and keeps them open until `close`.

    Args:
      device: "cuda", or "cpu" to test the benchmark itself: then the contenders are what runs there
        instead, through the same code.
    """

    def __init__(
        self, model: Model, source: Checkpoint, package: Path, engine_dir: Path, device: str
    ) -> None:
        self.model, self.source, self.device = model, source, device
        self.package, self.engine_dir = package, engine_dir
        self.half = torch.float16 if device == "cuda" else torch.float32
        self.parts: Mapping[str, Part] = {part.name: part for part in parts(source.configs)}
        self.variant = "as exported"
        """Of gpu_ort.VARIANTS."""
        self._loaded: dict[str, Any] = {}
        self._on_device: dict[tuple[str, torch.dtype], Any] = {}
        self._open: dict[tuple[str, str], tuple[Session, Any]] = {}
        self._graphed: set[str] = set()

    def close(self) -> None:
        """Free GPU memory; modules in host memory are kept."""
        with ExitStack() as last:
            for session, _ in self._open.values():
                last.callback(session.close)
            for kept in (self._open, self._on_device):
                kept.clear()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def sizes(self, batch: int, side: int) -> dict[str, int]:
        """The named dimensions of inputs and outputs for images of that width and height."""
        cells = side // self.source.downscale
        sizes = {"batch": batch, "sequence": 77, "height": cells, "width": cells}
        return sizes | {"image_height": side, "image_width": side}

    def feeds(self, component: str, batch: int, side: int) -> Feeds:
        """Random inputs for images of that width and height."""
        example = self.parts[component].example(self.sizes(batch, side), seed=batch)
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
        if backend in TORCHES:
            return self._torch(component, feeds, self.half, graphed=backend == TORCH_GRAPH)
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
        switches = torch.backends.cuda.matmul, torch.backends.cudnn
        before = [switch.allow_tf32 for switch in switches]
        try:
            for switch in switches:
                switch.allow_tf32 = False
            outputs = self._torch(component, feeds, torch.float32).outputs()
        finally:
            for switch, value in zip(switches, before, strict=True):
                switch.allow_tf32 = value
        if self.half != torch.float32:
            del self._on_device[self.parts[component].source, torch.float32]
            torch.cuda.empty_cache()
        return outputs

    def session(self, component: str, backend: str) -> tuple[Session, Any]:
        """An open session, and the CUDA stream that it uses."""
        if backend == ORT_GRAPH and component not in ("unet", "vae_decoder"):
            backend = ORT  # called once for an image, and with other shapes
        key = component, backend
        if key not in self._open:
            stream = torch.cuda.Stream() if self.device == "cuda" else None
            if backend == ORT_GRAPH:
                batch = 2 if component == "unet" else 1
                session: Any = GraphSession(
                    self.package / component / "model.onnx",
                    self.sizes(batch, self.model.side),
                    folder=self.package.parent / "rewritten",
                    device=self.device,
                    variant=self.variant,
                    stream=stream,
                )
            else:
                session = self.plain_session(component, backend, stream)
            if backend in PLAN_BACKENDS and self.device == "cuda":
                stream = torch.cuda.ExternalStream(session.stream.handle)
            self._open[key] = session, stream
        return self._open[key]

    def plain_session(self, component: str, backend: str, stream: Any = None) -> Session:
        """A session of one of our backends, which the caller closes."""
        options: dict[str, Any] = {}
        if backend == ORT and stream is not None:  # ours, so that events can be recorded in it
            options["provider_options"] = {"user_compute_stream": str(stream.cuda_stream)}
        if backend == ORT and self.device != "cuda":
            backend = "onnxruntime"
        package = Package.load(self.package, verify=False)
        return open_component(package, component, backend, engine_dir=self.engine_dir, **options)

    def close_session(self, component: str, backend: str) -> None:
        """Free a session, so that it is opened anew."""
        session, _ = self._open.pop((component, backend))
        session.close()

    def _torch(
        self, component: str, feeds: Feeds, dtype: torch.dtype, *, graphed: bool = False
    ) -> Runner:
        part = self.parts[component]
        source = self.module(part.source, dtype)
        if graphed:
            self._graph(part.source, source)
        module = part.wrap(source).eval()
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

    def _graph(self, name: str, module: Any) -> None:
        """Let a UNet replay a CUDA graph of itself; other modules run once for an image."""
        if name == "unet" and name not in self._graphed:
            self._graphed.add(name)
            module.forward = GraphedForward(module.forward, self.device)

    def image_function(self, backend: str) -> Callable[[int, int], np.ndarray]:
        """A function from (steps, number of the prompt) to an image, (side, side, 3) uint8."""
        if backend in TORCHES:
            return self._diffusers(backend)
        pipe = Pipeline(
            Package.load(self.package, verify=False),
            ORT if backend == ORT_GRAPH else backend,  # for what is not among the sessions
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

    def _diffusers(self, backend: str) -> Callable[[int, int], np.ndarray]:
        import diffusers
        from transformers import CLIPTokenizer

        components: dict[str, Any] = {}
        for name in self.source.text_encoders:
            where = tokenizer_folder(name)
            components[name] = self.module(name, self.half)
            components[where] = CLIPTokenizer.from_pretrained(str(self.source.folder / where))
        unet = self.module("unet", self.half)
        if backend == TORCH_GRAPH:
            self._graph("unet", unet)
        components["unet"] = compiled(unet, self.device) if backend == COMPILED else unet
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


def compiled(module: Any, device: str) -> Any:
    """With CUDA graphs, but without the search for the fastest kernels, which takes minutes."""
    options = {"mode": "reduce-overhead"} if device == "cuda" else {"backend": "eager"}
    return torch.compile(module, dynamic=False, **options)
