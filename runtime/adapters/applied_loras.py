"""The LoRAs of one call: their factors joined, and bound to the sessions that take them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sdexport.engines import PLAN_BACKENDS, Session
from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import shown
from sdexport.runtime import checks
from sdexport.runtime.adapters.adapted_session import AdaptedSession
from sdexport.runtime.adapters.lora_file import LayerFactors, LoadedLora
from sdexport.runtime.adapters.lora_folder import LARGEST_SCALE
from sdexport.runtime.adapters.lora_inputs import DOWN, UP, LayerShape, input_name
from sdexport.runtime.adapters.lora_store import LoraStore
from sdexport.runtime.component_sessions import ComponentSessions
from sdexport.runtime.images.recorded_values import RecordedLora
from sdexport.runtime.models.components import TOKEN_EMBEDDING, lora_graph
from sdexport.runtime.text_encoders import TextEncoders

MOST = 64
"""LoRAs of one call."""
SAME_RANKS = ("openvino",)
"""Backends that compile for the shapes of a call. There all layers get the same rank, a multiple of
RANK_STEP, so that most LoRAs have the shapes of the one before; convolutions have a rank of their
own, as most LoRAs leave them out."""
RANK_STEP = 16
UNSUPPORTED = (*PLAN_BACKENDS, "webgpu")
SessionOf = Callable[[str], Session]


@dataclass(frozen=True, eq=False)
class _Applied:
    """One LoRA. scales: one for each image, or one for all."""

    name: str
    lora: LoadedLora
    scales: tuple[float, ...]


class _LayerOfCall(NamedTuple):
    """A layer, the rank that its factors get, and those of each LoRA with its scales."""

    shape: LayerShape
    rank: int
    pairs: list[tuple[LayerFactors, tuple[float, ...]]]


class AppliedLoras:
    """What a call's LoRAs change; without any, every session is the package's own.

    Args:
      store: of the pipeline.
      loras: argument of the call: names or files, each alone or with its scale or scales.
      count: of images.
      components: the sessions of the pipeline, for their backends.
    Raises: InvalidArgumentError: arguments of another kind, or a backend that takes no LoRAs. See
      LoraStore.find.
    """

    def __init__(
        self,
        store: LoraStore,
        loras: object,
        count: int,
        components: ComponentSessions,
    ) -> None:
        self._store, self._count, self._components = store, count, components
        self._sessions: dict[str, Session] = {}
        given = [_parsed(entry, count) for entry in _entries(loras)]
        self._all = [_Applied(*store.find(source), scales) for source, scales in given]
        self._used = [each for each in self._all if any(each.scales)]
        for part in self._parts():
            backend = components.requested(part)
            if backend in UNSUPPORTED:
                raise InvalidArgumentError(
                    f"loras: {backend} does not take LoRAs at run time; use --backend onnxruntime "
                    "or openvino, or merge them when exporting: sdexport export --lora"
                )

    @property
    def recorded(self) -> tuple[RecordedLora, ...] | None:
        """What is recorded in the images."""
        found = [
            RecordedLora(each.name, each.lora.sha256, _single(each.scales)) for each in self._all
        ]
        return tuple(found) or None

    def graph(self, component: str) -> str:
        """The graph that runs: the component's own, or the one that takes LoRAs."""
        return lora_graph(component) if self._of(component) else component

    def denoiser(self, component: str, session: SessionOf) -> Session:
        """The session of the denoiser."""
        return self._session(component, component, session)

    def conditioning(self, component: str, *, guided: bool) -> dict[str, np.ndarray]:
        """Further inputs of the denoiser, a row for each row of the embeddings; see `denoise`.

        They are those factors that are not the same for all images.
        """
        rows = self._row_inputs(component)
        return {name: np.concatenate([up, up]) if guided else up for name, up in rows.items()}

    def text_encoders(self, encoders: TextEncoders) -> TextEncoders:
        """Text encoders that run with the LoRAs.

        Raises: InvalidArgumentError: a LoRA of a text encoder has a scale for each image.
        """
        changed = {name: self._key(name) for name in encoders.tokenizers if self._of(name)}
        if not changed:
            return encoders
        for name in changed:
            if not self._is_uniform(name):
                first = next(each for each in self._of(name) if len(set(each.scales)) > 1)
                raise InvalidArgumentError(
                    f"loras: {first.name} changes the text encoder, so it needs one scale for all "
                    "images; give these images in calls of their own"
                )

        def session_of(graph: str, session: SessionOf) -> Session:
            return self._session(graph.partition(".")[0], graph, session)

        return encoders.adapted(session_of, changed)

    def _session(self, component: str, graph: str, session: SessionOf) -> Session:
        if graph.endswith(f".{TOKEN_EMBEDDING}") or not self._of(component):
            return session(graph)
        if graph not in self._sessions:
            adapted = session(lora_graph(graph))
            self._sessions[graph] = AdaptedSession(adapted, self._inputs(component))
        return self._sessions[graph]

    def _parts(self) -> set[str]:
        return {part for each in self._used for part in each.lora.layers}

    def _of(self, component: str) -> list[_Applied]:
        """The LoRAs that change a component."""
        return [each for each in self._used if component in each.lora.layers]

    def _key(self, component: str) -> tuple[object, ...]:
        """What the outputs of a component depend on."""
        return tuple((each.lora.sha256, each.scales) for each in self._of(component))

    def _is_uniform(self, component: str) -> bool:
        return all(len(set(each.scales)) == 1 for each in self._of(component))

    def _inputs(self, component: str) -> dict[str, np.ndarray]:
        """The factors that are the same for all images, by input."""
        uniform, inputs = self._is_uniform(component), {}
        for shape, rank, pairs in self._layers(component):
            downs = [pair.down for pair, _ in pairs]
            inputs[input_name(shape.name, DOWN)] = _joined_down(shape, downs, rank)
            if uniform:
                ups = [_scaled(pair.up, scales[0]) for pair, scales in pairs]
                inputs[input_name(shape.name, UP)] = _joined_up(shape, ups, rank)[None]
        return inputs

    def _row_inputs(self, component: str) -> dict[str, np.ndarray]:
        """The factors that differ from image to image, (count, ...) each."""
        inputs: dict[str, np.ndarray] = {}
        if self._is_uniform(component):
            return inputs
        for shape, rank, pairs in self._layers(component):
            rows = [
                _joined_up(shape, [_scaled(pair.up, _scale(s, i)) for pair, s in pairs], rank)
                for i in range(self._count)
            ]
            inputs[input_name(shape.name, UP)] = np.stack(rows)
        return inputs

    def _layers(self, component: str) -> list[_LayerOfCall]:
        """The layers of a component, each with its rank and the factors of every LoRA."""
        found = []
        for name, shape in self._store.target.shapes[component].items():
            pairs = [
                (each.lora.layers[component][name], each.scales)
                for each in self._of(component)
                if name in each.lora.layers[component]
            ]
            found.append(_LayerOfCall(shape, sum(pair.rank for pair, _ in pairs), pairs))
        backend = self._components.opened_with(lora_graph(component)).name
        if backend not in SAME_RANKS:
            return found
        largest = dict.fromkeys((False, True), 0)
        for shape, rank, _ in found:
            largest[shape.taps > 1] = max(largest[shape.taps > 1], rank)
        ranks = {key: -(-rank // RANK_STEP) * RANK_STEP for key, rank in largest.items()}
        return [each._replace(rank=ranks[each.shape.taps > 1]) for each in found]


def _entries(loras: object) -> list[object]:
    if loras is None:
        return []
    if not isinstance(loras, (list, tuple)):
        raise InvalidArgumentError(
            f'loras: expected a list such as [("style.safetensors", 0.8)], got {shown(loras)}'
        )
    if len(loras) > MOST:
        raise InvalidArgumentError(f"loras: at most {MOST} at once, got {len(loras)}")
    return list(loras)


def _parsed(entry: object, count: int) -> tuple[object, tuple[float, ...]]:
    """Name or file of a LoRA, and its scales."""
    source, scale = entry, 1.0
    if isinstance(entry, (list, tuple)):
        if len(entry) != 2:
            raise InvalidArgumentError(f"loras: expected (file, scale), got {shown(entry)}")
        source, scale = entry
    several = isinstance(scale, (list, tuple, np.ndarray)) and np.ndim(scale) == 1
    values = list(scale) if several else [scale]  # type: ignore[call-overload]
    if several and len(values) != count:
        raise InvalidArgumentError(
            f"loras: got {len(values)} scales of {shown(source)} for {count} images"
        )
    where = f"loras: the scale of {shown(source)}"
    return source, tuple(
        checks.number(where, value, -LARGEST_SCALE, LARGEST_SCALE) for value in values
    )


def _single(scales: tuple[float, ...]) -> float | tuple[float, ...]:
    return scales[0] if len(scales) == 1 else scales


def _scale(scales: tuple[float, ...], image: int) -> float:
    return scales[0] if len(scales) == 1 else scales[image]


def _scaled(up: np.ndarray, scale: float) -> np.ndarray:
    with np.errstate(over="ignore"):  # the output is then not finite, which is an error
        return up if scale == 1 else up * np.float32(scale)


def _joined_down(shape: LayerShape, downs: Sequence[np.ndarray], rank: int) -> np.ndarray:
    """The first factors, joined along the rank; with zeros up to `rank`, and at least to 1."""
    rows = max(rank, 1) * max(shape.taps, 1)
    return _joined(downs, 0 if shape.kernel else 1, rows, shape.inputs)


def _joined_up(shape: LayerShape, ups: Sequence[np.ndarray], rank: int) -> np.ndarray:
    return _joined(ups, 1 if shape.kernel else 0, max(rank, 1), shape.outputs)


def _joined(parts: Sequence[np.ndarray], axis: int, size: int, other: int) -> np.ndarray:
    missing = size - sum(part.shape[axis] for part in parts)
    if missing:
        zeros = np.zeros((missing, other) if axis == 0 else (other, missing), np.float32)
        parts = [*parts, zeros]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis)
