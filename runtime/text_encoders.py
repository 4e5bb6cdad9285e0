"""Texts to embeddings, through the text encoders of a package."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np

from sdexport.engines import Session
from sdexport.engines.messages import shown
from sdexport.engines.session import Feeds
from sdexport.runtime import checks
from sdexport.runtime.component_sessions import finite
from sdexport.runtime.models.components import INPUTS_EMBEDS, TOKEN_EMBEDDING
from sdexport.runtime.models.text_layers import PROJECTED
from sdexport.runtime.packages.package import Package
from sdexport.runtime.text.conditioning import Encoded
from sdexport.runtime.text.prompt_weights import apply_weights, tokenize_weighted
from sdexport.runtime.text.token_embeds import (
    Lookup,
    TokenEmbeds,
    build_inputs_embeds,
    check_token_embeds,
    replace_tokens,
    word_ids,
)

MOST_LAYERS = 1000
REMEMBERED = 32
"""Rows of 77 tokens whose embeddings are kept: 8 MB of SD 1.5, 10 MB of SDXL."""


class TextEncoders:
    """The text encoders of a package, each with its tokenizer.

    An encoder is given one row of tokens at a time, so that a text has the same embeddings, to the
    last bit, whatever stands beside it; and a row that was met lately is not computed again.

    Args:
      session: gives the open session of a component.
    """

    def __init__(self, package: Package, session: Callable[[str], Session]) -> None:
        self._session = session
        self._rows = _Rows(REMEMBERED)
        self._text_layers = package.family.text_layers
        self.tokenizers = {
            spec.name: package.tokenizer(spec.name)
            for spec in package.family.text_encoders
            if spec.name in package.manifest.components
        }
        self._layers = {
            name: checks.integer(
                f"{name}/config.json: num_hidden_layers",
                package.config(name).get("num_hidden_layers", MOST_LAYERS),
                1,
                MOST_LAYERS,
            )
            for name in self.tokenizers
        }

    def encode(
        self,
        texts: Sequence[str],
        negatives: int = 0,
        *,
        prompt_weights: bool = False,
        clip_skip: int = 0,
        token_embeds: TokenEmbeds | None = None,
    ) -> Encoded:
        """Embeddings as the model was trained on: of two encoders side by side, if there are two.

        Args:
          prompt_weights: read weights in brackets and prompts of any length; see prompt_weights.
          negatives: how many of the first texts are negative prompts; like diffusers, clip_skip
            leaves those alone.
          clip_skip: layers to leave out at the end.
          token_embeds: what takes the place of words before the encoder, in negative prompts too;
            see sdexport.runtime.text.token_embeds. A word must stand in one of the texts at least.
        Raises: ValueError: not valid Unicode; a clip_skip that the package has no output for;
          token_embeds that do not fit. PackageError: the package lacks the graphs for token_embeds.
        """
        wanted = check_token_embeds(token_embeds)
        sides, pooled = [], None
        for name, tokenizer in self.tokenizers.items():
            expanded = [tokenizer.expand(text) for text in texts]
            if prompt_weights:
                tokens = tokenize_weighted(tokenizer, expanded)
                rows = tokens.input_ids.shape[1]
                hidden, of_text = self._run(
                    name, tokens.flat_ids, negatives * rows, clip_skip, wanted
                )
                sides.append(apply_weights(hidden, tokens))
                of_text = None if of_text is None else of_text[::rows]
            else:
                hidden, of_text = self._run(name, tokenizer(expanded), negatives, clip_skip, wanted)
                sides.append(hidden)
            pooled = of_text if of_text is not None else pooled
        return Encoded(sides[0] if len(sides) == 1 else np.concatenate(sides, axis=-1), pooled)

    def token_embeds(self, word: str, component: str | None = None) -> np.ndarray:
        """Embeddings of a word's tokens as they go into a text encoder.

        Returns: (tokens, width) float32.
        Raises: ValueError: no such text encoder; an empty word. PackageError: the package lacks
          the graph.
        """
        component = next(iter(self.tokenizers)) if component is None else component
        if component not in self.tokenizers:
            raise ValueError(
                f"no text encoder '{component:.40}'; the package has {', '.join(self.tokenizers)}"
            )
        ids = word_ids(self.tokenizers[component], word)
        if not ids:
            raise ValueError(f"token_embeds: {shown(word)} has no tokens")
        embeds: np.ndarray = self._lookup(component)(np.array([ids], dtype=np.int64))[0]
        return embeds

    def _lookup(self, name: str) -> Lookup:
        session = self._session(f"{name}.{TOKEN_EMBEDDING}")
        return lambda input_ids: session.run({"input_ids": input_ids})[INPUTS_EMBEDS]

    def _inputs(
        self, name: str, input_ids: np.ndarray, wanted: TokenEmbeds
    ) -> tuple[Session, dict[str, np.ndarray]]:
        """The graph to run, and what it is given: ids, or embeddings that no ids have."""
        tokenizer, names = self.tokenizers[name], list(self.tokenizers)
        words = {old: new for old, new in wanted.items() if isinstance(new, str)}
        if len(words) == len(wanted):
            session = self._session(name)
            ids = replace_tokens(tokenizer, input_ids, words).astype(session.inputs[0].dtype)
            return session, {"input_ids": ids}
        encoder = names.index(name), len(names)
        embeds = build_inputs_embeds(tokenizer, input_ids, wanted, self._lookup(name), encoder)
        session = self._session(f"{name}.{INPUTS_EMBEDS}")
        return session, {"input_ids": input_ids, INPUTS_EMBEDS: embeds}

    def _run(
        self,
        name: str,
        input_ids: np.ndarray,
        negatives: int,
        clip_skip: int,
        wanted: TokenEmbeds,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        session, feeds = self._inputs(name, input_ids, wanted)
        output, whole = self._outputs(name, session, clip_skip)
        pooled = [spec.name for spec in session.outputs if spec.name == PROJECTED]
        hidden, of_texts = [], []
        for i in range(len(input_ids)):
            row = {key: value[i : i + 1] for key, value in feeds.items()}
            outputs = [whole if i < negatives else output, *pooled]
            first, *rest = self._rows.of(name, session, row, outputs)
            hidden.append(first)
            of_texts += rest
        return np.concatenate(hidden), np.concatenate(of_texts) if of_texts else None

    def _outputs(self, name: str, session: Session, clip_skip: int) -> tuple[str, str]:
        """The outputs that hold the embeddings with layers left out, and with none."""
        outputs = [spec.name for spec in session.outputs]
        able = self._text_layers.by_clip_skip(outputs, self._layers[name])
        if isinstance(clip_skip, bool) or not isinstance(clip_skip, int) or clip_skip not in able:
            raise ValueError(
                f"clip_skip must be one of {', '.join(map(str, able))} with this package, "
                f"got {shown(clip_skip)}"
            )
        return able[clip_skip], able[0]


class _Rows:
    """What text encoders made of the rows that were met last; for several threads."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._found: OrderedDict[tuple[object, ...], list[np.ndarray]] = OrderedDict()
        self._lock = threading.Lock()

    def of(
        self, name: str, session: Session, row: Feeds, outputs: Sequence[str]
    ) -> list[np.ndarray]:
        """Outputs for one row; they are not to be written to.

        Raises: EngineError: NaN or infinity is among them, or the encoder failed.
        """
        key = (name, session.refits, *outputs, *((k, v.tobytes()) for k, v in row.items()))
        with self._lock:
            if key in self._found:
                self._found.move_to_end(key)
                return self._found[key]
        results = session.run(row)
        found = [finite(results[output], name, "the prompt") for output in outputs]
        with self._lock:
            self._found[key] = found
            while len(self._found) > self._most:
                self._found.popitem(last=False)
        return found
