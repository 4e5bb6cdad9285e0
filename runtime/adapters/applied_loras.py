"""The LoRAs of one call: their factors joined, and bound to the sessions that take them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import NamedTuple

import numpy as np

from sdexport.engines import Session
from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import shown
from sdexport.engines.session import Feeds, named_sizes
from sdexport.runtime import checks
from sdexport.runtime.adapters.adapted_session import AdaptedSession
from sdexport.runtime.adapters.call_loras import LorasOfPrompts
from sdexport.runtime.adapters.joined_factors import joined_down, joined_up, scaled
from sdexport.runtime.adapters.lora_file import LayerFactors, LoadedLora
from sdexport.runtime.adapters.lora_folder import LARGEST_SCALE
from sdexport.runtime.adapters.lora_inputs import (
    DOWN,
    TAKE_LORAS,
    UP,
    LayerShape,
    input_name,
    rank_multiple,
)
from sdexport.runtime.adapters.lora_ranks import (
    COMPILES,
    group_of,
    largest,
    rounded,
)
from sdexport.runtime.adapters.lora_store import LoraStore
from sdexport.runtime.component_sessions import ComponentSessions
from sdexport.runtime.images.recorded_values import RecordedLora
from sdexport.runtime.models.components import TOKEN_EMBEDDING, lora_graph
from sdexport.runtime.text.added_vectors import Vectors, tokens_of, usable
from sdexport.runtime.text_encoders import EncoderVariant, SessionOf, TextEncoders

logger = logging.getLogger(__name__)

MOST = 64
"""LoRAs of one call."""
UNSUPPORTED = ("tensorrt", "webgpu")


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
      named: those that the prompts name.
    Raises: InvalidArgumentError: arguments of another kind, or a backend that takes no LoRAs. See
      LoraStore.find.
    """

    def __init__(
        self,
        store: LoraStore,
        loras: object,
        count: int,
        components: ComponentSessions,
        named: LorasOfPrompts = (),
    ) -> None:
        self._store, self._count, self._components = store, count, components
        self._sessions: dict[str, tuple[tuple[object, ...], Session]] = {}
        given = [_parsed(entry, count) for entry in _entries(loras, named)]
        self._all = [_Applied(*store.find(source), scales) for source, scales in given]
        self._used = [each for each in self._all if any(each.scales)]
        self._compiled: dict[str, dict[str, int]] = {}
        for part in self._parts():
            self._check_backend(part)
            if components.opened_with(lora_graph(part)).name == COMPILES:
                self._compiled[part] = self._grown(part)

    @property
    def recorded(self) -> tuple[RecordedLora, ...] | None:
        """What is recorded in the images."""
        found = [
            RecordedLora(each.name, each.lora.sha256, _single(each.scales)) for each in self._all
        ]
        return tuple(found) or None

    def changes(self, component: str) -> bool:
        """Whether a component runs a graph that takes LoRAs."""
        return bool(self._of(component))

    def adapted(self, component: str, session: Session) -> Session:
        """The session of a component with the factors of the LoRAs.

        Args:
          session: of its graph that takes LoRAs, if they change it.
        """
        if not self.changes(component):
            return session
        inputs = self._inputs(component, self._of(component))
        _check_sizes(session, inputs)
        return AdaptedSession(session, inputs)

    def conditioning(self, component: str, *, guided: bool) -> dict[str, np.ndarray]:
        """Further inputs of the denoiser, a row for each row of the embeddings; see `denoise`.

        They are those factors that are not the same for all images.
        """
        rows = self._row_inputs(component)
        return {name: np.concatenate([up, up]) if guided else up for name, up in rows.items()}

    def text_encoders(self, encoders: TextEncoders) -> TextEncoders:
        """Text encoders that run with the LoRAs, and know the words that are bundled with them.

        Images with other scales have their texts encoded with other factors, as in calls of their
        own.
        """
        parts = [name for name in encoders.tokenizers if self._of(name)]
        words = self._words(encoders)
        if not parts and not words:
            return encoders
        of_images = [self._of_image(image, parts) for image in range(self._count)]
        distinct = dict(zip(map(_key, of_images), of_images, strict=True))
        places = {key: place for place, key in enumerate(distinct)}

        def variants(session: SessionOf) -> list[EncoderVariant]:
            return [self._variant(loras, session) for loras in distinct.values()]

        return encoders.adapted(variants, [places[_key(loras)] for loras in of_images], words)

    def _check_backend(self, part: str) -> None:
        """Raises: InvalidArgumentError: the backend of a component does not take the LoRAs."""
        backend, graph = self._components.requested(part), lora_graph(part)
        if backend in UNSUPPORTED:
            raise InvalidArgumentError(
                f"loras: {backend} does not take LoRAs at run time; use --backend onnxruntime or "
                "openvino, or merge them when exporting: sdexport export --lora"
            )
        if missing := self._components.missing_engine(graph):
            raise InvalidArgumentError(f"loras: {missing}")
        varying = [each.name for each in self._of(part) if len(set(each.scales)) > 1]
        if backend in TAKE_LORAS and varying and part not in self._store.target.widths:
            raise InvalidArgumentError(
                f"loras: {backend} takes one scale of {shown(varying[0])} for all images; give "
                "these images in calls of their own"
            )

    def _words(self, encoders: TextEncoders) -> dict[str, Vectors]:
        """The words that are bundled with the LoRAs, whatever their scales."""
        found: dict[str, Vectors] = {}
        for lora in {each.lora.sha256: each for each in self._all}.values():
            for word, vectors in lora.lora.words.items():
                taken = {token for other in found for token in tokens_of(other, found[other])}
                why = usable(word, vectors, encoders.tokenizers.values())
                if taken.intersection(tokens_of(word, vectors)):
                    why = "another LoRA has that word"
                if why is None:
                    found[word] = vectors
                else:
                    logger.warning(
                        "%s: its bundled embedding of %s is not used: %s",
                        *(lora.name, shown(word), why),
                    )
        return found

    def _of_image(self, image: int, parts: Collection[str]) -> list[_Applied]:
        """The LoRAs that change one of these components for an image, with one scale each."""
        loras = [each for each in self._used if not each.lora.layers.keys().isdisjoint(parts)]
        single = [replace(each, scales=(_scale(each.scales, image),)) for each in loras]
        return [each for each in single if each.scales != (0.0,)]

    def _variant(self, loras: list[_Applied], plain: SessionOf) -> EncoderVariant:
        def session(graph: str) -> Session:
            component = graph.partition(".")[0]
            return self._session(component, graph, plain, _changing(loras, component))

        parts = {part for each in loras for part in each.lora.layers}
        return EncoderVariant(session, {part: _key(_changing(loras, part)) for part in parts})

    def _session(
        self, component: str, graph: str, session: SessionOf, loras: list[_Applied]
    ) -> Session:
        """The session of a graph with these LoRAs; for each graph the last one is kept."""
        if graph.endswith(f".{TOKEN_EMBEDDING}") or not loras:
            return session(graph)
        key = _key(loras)
        known = self._sessions.get(graph)
        if known is None or known[0] != key:
            adapted, inputs = session(lora_graph(graph)), self._inputs(component, loras)
            _check_sizes(adapted, inputs)
            known = self._sessions[graph] = key, AdaptedSession(adapted, inputs)
        return known[1]

    def _parts(self) -> set[str]:
        return {part for each in self._used for part in each.lora.layers}

    def _of(self, component: str) -> list[_Applied]:
        """The LoRAs that change a component."""
        return _changing(self._used, component)

    def _inputs(self, component: str, loras: list[_Applied]) -> dict[str, np.ndarray]:
        """The factors that are the same for all images, by input."""
        uniform, inputs = _is_uniform(loras), {}
        for shape, rank, pairs in self._layers(component, loras):
            downs = [pair.down for pair, _ in pairs]
            inputs[input_name(shape.name, DOWN)] = joined_down(shape, downs, rank)
            if uniform:
                ups = [scaled(pair.up, scales[0]) for pair, scales in pairs]
                inputs[input_name(shape.name, UP)] = joined_up(shape, ups, rank)[None]
        return inputs

    def _row_inputs(self, component: str) -> dict[str, np.ndarray]:
        """The factors that differ from image to image, (count, ...) each."""
        inputs: dict[str, np.ndarray] = {}
        loras = self._of(component)
        if _is_uniform(loras):
            return inputs
        for shape, rank, pairs in self._layers(component, loras):
            rows = [
                joined_up(shape, [scaled(pair.up, _scale(s, i)) for pair, s in pairs], rank)
                for i in range(self._count)
            ]
            inputs[input_name(shape.name, UP)] = np.stack(rows)
        return inputs

    def _layers(self, component: str, loras: list[_Applied]) -> list[_LayerOfCall]:
        """The layers of a component, each with its rank and the factors of every LoRA."""
        found = []
        for name, shape in self._store.target.shapes[component].items():
            pairs = [
                (each.lora.layers[component][name], each.scales)
                for each in loras
                if name in each.lora.layers[component]
            ]
            found.append(_LayerOfCall(shape, sum(pair.rank for pair, _ in pairs), pairs))
        if component in self._compiled:
            ranks = self._compiled[component]
        elif self._components.opened_with(lora_graph(component)).name in TAKE_LORAS:
            needed = rounded(largest({each.shape: each.rank for each in found}))
            ranks = {group: max(rank, 1) for group, rank in needed.items()}
        else:
            return [each._replace(rank=max(each.rank, 1)) for each in found]
        return [each._replace(rank=ranks[group_of(each.shape)]) for each in found]

    def _grown(self, component: str) -> dict[str, int]:
        """The ranks of a component that is compiled, by group; for larger ones it opens anew."""
        needed = {
            shape: sum(
                each.lora.layers[component][name].rank
                for each in self._of(component)
                if name in each.lora.layers[component]
            )
            for name, shape in self._store.target.shapes[component].items()
        }
        ranks, are_others = self._store.ranks.grown(component, largest(needed))
        if are_others:  # a graph for several kinds of adapters may be open without LoRAs
            self._components.forget(f"{component}.")
        return ranks


def _check_sizes(session: Session, inputs: Feeds) -> None:
    """Raises: InvalidArgumentError: an engine was built for other sizes of the factors."""
    specs = [spec for spec in session.inputs if spec.name in inputs]
    sizes = named_sizes(specs, {name: value.shape for name, value in inputs.items()})
    for name, size in session.nearest_sizes(sizes).items():
        if size != sizes[name]:
            taps = rank_multiple(name) or 1
            raise InvalidArgumentError(
                f"loras: their ranks add up to {sizes[name] // taps}, and the engine was built for "
                f"{size // taps}; build it with --lora-rank"
            )


def _changing(loras: Sequence[_Applied], component: str) -> list[_Applied]:
    return [each for each in loras if component in each.lora.layers]


def _key(loras: Sequence[_Applied]) -> tuple[object, ...]:
    """What the outputs of a component with these LoRAs depend on."""
    return tuple((each.lora.sha256, each.scales) for each in loras)


def _is_uniform(loras: Sequence[_Applied]) -> bool:
    return all(len(set(each.scales)) == 1 for each in loras)


def _entries(loras: object, named: LorasOfPrompts) -> list[object]:
    loras = () if loras is None else loras
    if not isinstance(loras, (list, tuple)):
        raise InvalidArgumentError(
            f'loras: expected a list such as [("style.safetensors", 0.8)], got {shown(loras)}'
        )
    found = [*loras, *named]
    if len(found) > MOST:
        raise InvalidArgumentError(f"loras: at most {MOST} at once, got {len(found)}")
    return found


def _parsed(entry: object, count: int) -> tuple[object, tuple[float, ...]]:
    """Name or file of a LoRA, and its scales."""
    source, scale = entry, 1.0
    if isinstance(entry, (list, tuple)):
        if len(entry) != 2:
            raise InvalidArgumentError(f"loras: expected (file, scale), got {shown(entry)}")
        source, scale = entry
    name = shown(str(source) if isinstance(source, PathLike) else source)
    several = isinstance(scale, (list, tuple, np.ndarray)) and np.ndim(scale) == 1
    values = list(scale) if several else [scale]  # type: ignore[call-overload]
    if several and len(values) != count:
        raise InvalidArgumentError(f"loras: got {len(values)} scales of {name} for {count} images")
    where = f"loras: the scale of {name}"
    return source, tuple(
        checks.number(where, value, -LARGEST_SCALE, LARGEST_SCALE) for value in values
    )


def _single(scales: tuple[float, ...]) -> float | tuple[float, ...]:
    return scales[0] if len(scales) == 1 else scales


def _scale(scales: tuple[float, ...], image: int) -> float:
    return scales[0] if len(scales) == 1 else scales[image]
