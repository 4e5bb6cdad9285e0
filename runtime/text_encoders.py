"""From texts to embeddings: the text encoders of a package and their tokenizers."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from sdexport.engines import Session
from sdexport.engines.errors import InvalidArgumentError, PackageError
from sdexport.engines.messages import shown
from sdexport.runtime import checks
from sdexport.runtime.cached_rows import RowCache
from sdexport.runtime.models.components import (
    ATTENTION_MASK,
    INPUTS_EMBEDS,
    TOKEN_EMBEDDING,
)
from sdexport.runtime.models.text_layers import PROJECTED
from sdexport.runtime.packages.package import Package
from sdexport.runtime.text.added_vectors import AddedVectors, Vectors
from sdexport.runtime.text.comfyui_weights import interpolate, tokenize_comfyui
from sdexport.runtime.text.compel_embeds import Run, encode_compel
from sdexport.runtime.text.prompt_embeds import Text, TextEmbeds
from sdexport.runtime.text.prompt_styles import AUTOMATIC1111, COMFYUI, COMPEL, style_name
from sdexport.runtime.text.prompt_weights import (
    COMMA_BACKTRACK,
    WeightedTokens,
    apply_weights,
    tokenize_weighted,
)
from sdexport.runtime.text.token_embeds import (
    Lookup,
    TokenEmbeds,
    build_inputs_embeds,
    check_token_embeds,
    replace_tokens,
    word_ids,
)
from sdexport.runtime.text.tokenizer import ClipTokenizer

MAX_LAYERS = 1000
SessionOf = Callable[[str], Session]
"""Returns the open session of a component or a token graph."""
CACHED_ROWS = 32
"""Rows of 77 tokens whose embeddings are cached: 8 MB for SD 1.5, 10 MB for SDXL."""


@dataclass(frozen=True)
class EncoderVariant:
    """How the text encoders run for some of the images of a call.

    session: returns the session of a graph.
    keys: by the name of a text encoder, what else its outputs depend on.
    """

    session: SessionOf
    keys: Mapping[str, tuple[object, ...]] = field(default_factory=dict)


class TextEncoders:
    """The text encoders of a package, each with its tokenizer. Safe to call from several threads.

    An encoder runs on one row of tokens at a time, so that a text has bit for bit the same
    embeddings in any batch. The outputs for the last rows are cached.

    Args:
      session: returns the open session of a component.
    Attributes:
      tokenizers: by the name of the text encoder.
      image_variants: for each image of a call the index of its variant; empty if there is only one.
      most_rows: rows of 75 tokens that a text may have, textual inversions and words of LoRAs
        written out; None for any number.
    Raises: PackageError: a tokenizer or a config.json is damaged.
    """

    def __init__(self, package: Package, session: SessionOf) -> None:
        self._session = session
        self._variants: Sequence[EncoderVariant] = [EncoderVariant(session)]
        self.image_variants: Sequence[int] = ()
        self.most_rows: int | None = None
        self._vectors: Mapping[str, AddedVectors] = {}
        self._rows = RowCache(CACHED_ROWS)
        self._text_layers = package.family.text_layers
        self.tokenizers = {
            spec.name: package.tokenizer(spec.name)
            for spec in package.family.text_encoders
            if spec.name in package.manifest.components
        }
        self._layers = {name: _layer_count(package, name) for name in self.tokenizers}

    def adapted(
        self,
        variants: Callable[[SessionOf], Sequence[EncoderVariant]],
        image_variants: Sequence[int],
        words: Mapping[str, Vectors],
    ) -> TextEncoders:
        """The same text encoders with other sessions, and with further words.

        Args:
          variants: made from what returns the sessions of the package.
          image_variants: for each image of the call the index of one.
          words: textual inversions that the tokenizers do not have.
        """
        other = copy.copy(self)
        other._variants, other.image_variants = variants(self._session), tuple(image_variants)
        if words:
            other._vectors = {
                name: AddedVectors.of(tokenizer, name, words)
                for name, tokenizer in self.tokenizers.items()
            }
            other.tokenizers = {name: added.tokenizer for name, added in other._vectors.items()}
        return other

    def encode(
        self,
        texts: Sequence[Text],
        negatives: int = 0,
        variants: Sequence[int] = (),
        *,
        prompt_style: str | None = None,
        prompt_weights: bool = False,
        clip_skip: int = 0,
        token_embeds: TokenEmbeds | None = None,
    ) -> TextEmbeds:
        """Embeddings as the denoiser takes them; those of several encoders are concatenated.

        Args:
          texts: each for all encoders, or a tuple with one for each.
          negatives: how many of the first texts are negative prompts. As in diffusers, clip_skip
            has no effect on those.
          variants: for each text the index of a variant; default the first one for all.
          prompt_style: how weights and long prompts are read; one of prompt_styles.STYLES. Of
            "automatic1111" only what concerns one text: weights and BREAK.
          prompt_weights: another name for the style "automatic1111".
          clip_skip: layers to leave out at the end.
          token_embeds: replacements for words before the encoder, in negative prompts too; see
            sdexport.runtime.text.token_embeds. Each word must occur in at least one text.
        Returns: (B, n, width) float32. n is 77, or a multiple of 77 in all styles but "plain".
        Raises:
          InvalidArgumentError: texts that are not valid Unicode or have more rows than `most_rows`;
            an unknown style; a clip_skip for which the package has no output; token_embeds of
            another kind.
          PackageError: the package lacks the graphs for token_embeds.
        """
        style = style_name(prompt_style, weights=prompt_weights)
        replacements = check_token_embeds(token_embeds)
        variants = variants or [0] * len(texts)
        own = {
            name: [tokenizer.expand(text if isinstance(text, str) else text[k]) for text in texts]
            for k, (name, tokenizer) in enumerate(self.tokenizers.items())
        }
        if style == COMPEL:
            if replacements:
                raise InvalidArgumentError("token_embeds cannot be combined with the style compel")
            self._check_rows(lambda: max(map(_full_rows, self.tokenizers.values(), own.values())))
            return self._encode_compel(own, negatives, variants, clip_skip)
        tokens = {name: _tokens(self.tokenizers[name], own[name], style) for name in own}
        rows = max(each.input_ids.shape[1] for each in tokens.values())
        self._check_rows(lambda: rows)
        found = []
        for name, tokenizer in self.tokenizers.items():
            how: dict[str, Any] = {"clip_skip": clip_skip, "replacements": replacements}
            run = partial(self._run, name, variants=variants, **how)
            same = tokens[name].extended(tokenizer, rows)
            found.append(_encode(tokenizer, same, negatives, style, run))
        return _concatenated(found)

    def _check_rows(self, count: Callable[[], int]) -> None:
        """Raises: InvalidArgumentError: more rows than `most_rows`."""
        if self.most_rows is not None and (rows := count()) > self.most_rows:
            raise InvalidArgumentError(
                f"prompt: a text has {rows:,} rows of tokens, with its textual inversions and the "
                f"words of LoRAs written out; at most {self.most_rows:,} are read"
            )

    def _encode_compel(
        self,
        texts: Mapping[str, Sequence[str]],
        negatives: int,
        variants: Sequence[int],
        clip_skip: int,
    ) -> TextEmbeds:
        """Embeddings in Compel's style.

        Args:
          texts: by the name of the text encoder.
        """

        def run_of(name: str, i: int) -> Run:
            def run(input_ids: np.ndarray, mask: np.ndarray | None) -> TextEmbeds:
                count = len(input_ids) if i < negatives else 0
                how: dict[str, Any] = {"clip_skip": clip_skip, "attention_mask": mask}
                how["variants"] = variants[i : i + 1]
                return self._run(name, input_ids, count, replacements={}, **how)

            return run

        length = 0
        for _ in range(2):  # again if the text of another encoder is longer
            found = [
                encode_compel(tokenizer, texts[name], partial(run_of, name), length)
                for name, tokenizer in self.tokenizers.items()
            ]
            length = max(each.embeds.shape[1] for each in found)
            if all(each.embeds.shape[1] == length for each in found):
                break
        return _concatenated(found)

    def token_embeds(self, word: str, component: str | None = None) -> np.ndarray:
        """The token embeddings of a word: the input of a text encoder's transformer.

        Args:
          component: the text encoder; default the first one.
        Returns: (tokens, width) float32.
        Raises:
          InvalidArgumentError: no such text encoder; an empty word.
          PackageError: the package lacks the graph.
        """
        component = next(iter(self.tokenizers)) if component is None else component
        if component not in self.tokenizers:
            raise InvalidArgumentError(
                f"no text encoder '{component:.40}'; the package has {', '.join(self.tokenizers)}"
            )
        ids = word_ids(self.tokenizers[component], word)
        if not ids:
            raise InvalidArgumentError(f"token_embeds: {shown(word)} has no tokens")
        embeds: np.ndarray = self._lookup(component)(np.array([ids], dtype=np.int64))[0]
        return embeds

    def _lookup(self, name: str) -> Lookup:
        session = self._session(f"{name}.{TOKEN_EMBEDDING}")

        def lookup(input_ids: np.ndarray) -> np.ndarray:
            return session.run({"input_ids": input_ids})[INPUTS_EMBEDS]

        added = self._vectors.get(name)
        return lookup if added is None else added.lookup(lookup)

    def _inputs(
        self, name: str, input_ids: np.ndarray, replacements: TokenEmbeds
    ) -> tuple[str, dict[str, np.ndarray]]:
        """The graph to run and its inputs: ids, or embeddings that belong to no ids."""
        tokenizer, names = self.tokenizers[name], list(self.tokenizers)
        words = {old: new for old, new in replacements.items() if isinstance(new, str)}
        added = self._vectors.get(name)
        if len(words) == len(replacements):
            replaced = replace_tokens(tokenizer, input_ids, words)
            if added is None or not added.occur(replaced):
                return name, {"input_ids": replaced}
        encoder = names.index(name), len(names)
        embeds = build_inputs_embeds(
            tokenizer, input_ids, replacements, self._lookup(name), encoder
        )
        ids = input_ids if added is None else added.known(input_ids)
        return f"{name}.{INPUTS_EMBEDS}", {"input_ids": ids, INPUTS_EMBEDS: embeds}

    def _run(
        self,
        name: str,
        input_ids: np.ndarray,
        negatives: int,
        *,
        variants: Sequence[int],
        clip_skip: int,
        replacements: TokenEmbeds,
        attention_mask: np.ndarray | None = None,
    ) -> TextEmbeds:
        """Run a text encoder on rows of ids, of which the first `negatives` skip no layers.

        Args:
          variants: for each text, which is one row or several.
          attention_mask: the shape of input_ids, 0 where no token attends to; without replacements.
        """
        if attention_mask is None:
            graph, feeds = self._inputs(name, input_ids, replacements)
        else:
            if name in self._vectors:
                self._vectors[name].reject(input_ids)
            graph = f"{name}.{ATTENTION_MASK}"
            feeds = {"input_ids": input_ids, ATTENTION_MASK: attention_mask}
        hidden, pooled_rows = [], []
        of_rows = np.repeat(variants, len(input_ids) // max(len(variants), 1))
        for same, group in itertools.groupby(range(len(input_ids)), of_rows.__getitem__):
            variant = self._variants[same]
            session, key = variant.session(graph), variant.keys.get(name, ())
            skipped, full = self._outputs(name, session, clip_skip)
            pooled = [spec.name for spec in session.outputs if spec.name == PROJECTED]
            dtypes = {spec.name: spec.dtype for spec in session.inputs}
            for i in group:
                row = {k: v[i : i + 1].astype(dtypes[k], copy=False) for k, v in feeds.items()}
                outputs = [full if i < negatives else skipped, *pooled]
                first, *rest = self._rows.outputs(name, session, row, outputs, key)
                hidden.append(first)
                pooled_rows += rest
        return TextEmbeds(
            np.concatenate(hidden), np.concatenate(pooled_rows) if pooled_rows else None
        )

    def _outputs(self, name: str, session: Session, clip_skip: int) -> tuple[str, str]:
        """The outputs that hold the embeddings with `clip_skip` layers left out, and with none."""
        outputs = [spec.name for spec in session.outputs]
        by_skip = self._text_layers.by_clip_skip(outputs, self._layers[name])
        if (
            isinstance(clip_skip, bool)
            or not isinstance(clip_skip, int)
            or clip_skip not in by_skip
        ):
            raise InvalidArgumentError(
                f"clip_skip must be one of {', '.join(map(str, by_skip))} with this package, "
                f"got {shown(clip_skip)}"
            )
        return by_skip[clip_skip], by_skip[0]


def _concatenated(found: Sequence[TextEmbeds]) -> TextEmbeds:
    """The embeddings of all text encoders as one; the pooled ones are the last encoder's."""
    pooled = [each.pooled for each in found if each.pooled is not None]
    embeds = [each.embeds for each in found]
    return TextEmbeds(
        embeds[0] if len(embeds) == 1 else np.concatenate(embeds, -1),
        pooled[-1] if pooled else None,
        tuple(map(max, *(each.lengths for each in found), found[0].lengths)),
    )


def _tokens(tokenizer: ClipTokenizer, texts: Sequence[str], style: str) -> WeightedTokens:
    """The rows of ids of each text, and their weights."""
    if style == COMFYUI:
        return tokenize_comfyui(tokenizer, texts)
    if style == AUTOMATIC1111:
        return tokenize_weighted(tokenizer, texts, comma_backtrack=COMMA_BACKTRACK)
    input_ids = tokenizer(texts)[:, None]
    return WeightedTokens(input_ids, np.ones(input_ids.shape, np.float32), (1,) * len(texts))


def _full_rows(tokenizer: ClipTokenizer, texts: Sequence[str]) -> int:
    """The rows that the tokens of the longest text fill."""
    longest = max((len(tokenizer.encode(text)) for text in texts), default=0)
    return -(-longest // max(tokenizer.max_length - 2, 1))


def _encode(
    tokenizer: ClipTokenizer,
    tokens: WeightedTokens,
    negatives: int,
    style: str,
    run: Callable[..., TextEmbeds],
) -> TextEmbeds:
    """Embeddings of one text encoder.

    Args:
      run: `TextEncoders._run` for this text encoder.
    """
    count, rows, length = tokens.input_ids.shape
    found = run(tokens.flat_ids, negatives * rows)
    if style == COMFYUI and (tokens.weights != 1).any():
        empty = run(tokenizer([""] * count), negatives, replacements={}).embeds
        embeds = interpolate(found.embeds, empty, tokens)
    else:
        embeds = apply_weights(found.embeds, tokens)
    pooled = None if found.pooled is None else found.pooled[::rows]
    return TextEmbeds(embeds, pooled, tuple(needed * length for needed in tokens.needed))


def _layer_count(package: Package, name: str) -> int:
    """How many layers a text encoder has; MAX_LAYERS if its config.json does not say."""
    value = package.config(name).get("num_hidden_layers", MAX_LAYERS)
    try:
        return checks.integer(f"{name}/config.json: num_hidden_layers", value, 1, MAX_LAYERS)
    except InvalidArgumentError as error:
        raise PackageError(f"{package.folder}: {error}") from error
