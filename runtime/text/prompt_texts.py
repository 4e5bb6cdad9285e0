"""The texts of prompts: their parts, and what each is in the steps of a run."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from sdexport.engines.errors import InvalidArgumentError
from sdexport.engines.messages import shown
from sdexport.runtime.text.prompt_editing import EditedPrompt
from sdexport.runtime.text.prompt_embeds import Text
from sdexport.runtime.text.prompt_parts import split_parts
from sdexport.runtime.text.prompt_styles import AUTOMATIC1111

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepRange:
    """The steps of a run.

    Attributes:
      calls: indices of the denoising loop that are run. They count calls of the denoiser, of which
        a sampler of second order has two for each step.
      all_calls: how many there would be for all steps.
      total: num_inference_steps.
      continues: whether the steps before `calls` were run by another model and count as well.
    """

    calls: range
    all_calls: int
    total: int
    continues: bool = False

    @property
    def count(self) -> int:
        """The number of the last step that runs."""
        return self.number(self.calls[-1]) if self.calls else 1

    def number(self, call: int) -> int:
        """The number of the step that a call belongs to; 1 is the first step that counts."""
        start = 0 if self.continues else self.calls.start
        first = start * self.total // self.all_calls
        return call * self.total // self.all_calls - first + 1


@dataclass(frozen=True)
class StepTexts:
    """A text that may change from step to step, or one for each text encoder."""

    texts: tuple[EditedPrompt, ...]

    @property
    def changes(self) -> bool:
        """Whether a text may differ from step to step."""
        return any(text.changes for text in self.texts)

    def at(self, step: int, steps: int) -> Text:
        """The text in a step, counted from 1."""
        found = tuple(text.at(step, steps) for text in self.texts)
        return found[0] if len(found) == 1 else found

    def last_change(self, steps: int) -> int:
        """The last step whose text differs from the text before it; 1 if none does."""
        return max(text.last_change(steps) for text in self.texts)


@dataclass(frozen=True)
class WeightedText:
    """One part of a prompt, and the weight of its prediction."""

    text: StepTexts
    weight: float


def parts_of(prompt: Text, style: str) -> list[WeightedText]:
    """The parts of a prompt. Where each text encoder has its own text, the first has the weights.

    Raises: InvalidArgumentError: these texts have different numbers of parts.
    """
    if style != AUTOMATIC1111:
        return [WeightedText(edited(prompt, style), 1.0)]
    each = [split_parts(text) for text in as_tuple(prompt)]
    if len({len(parts) for parts in each}) > 1:
        raise InvalidArgumentError(
            f"prompt and prompt_2 must have as many parts between ANDs, got "
            f"{' and '.join(str(len(parts)) for parts in each)}"
        )
    return [
        WeightedText(StepTexts(tuple(part.text for part in same)), same[0].weight)
        for same in zip(*each, strict=True)
    ]


def edited(prompt: Text, style: str) -> StepTexts:
    """A prompt of one part, with its edits and alternations if the style has them."""
    literal = style != AUTOMATIC1111
    return StepTexts(tuple(EditedPrompt(text, literal=literal) for text in as_tuple(prompt)))


def as_tuple(text: Text) -> tuple[str, ...]:
    """The text, or one for each text encoder."""
    return (text,) if isinstance(text, str) else text


def require_constant(
    prompts: Sequence[Text], negatives: Sequence[Text], style: str, what: str
) -> None:
    """Require texts that embeddings alone can represent, the same ones in each step.

    Args:
      what: cannot represent the others, for the message.
    Raises: InvalidArgumentError: a text changes from step to step or has several parts.
    """
    if style != AUTOMATIC1111:
        return
    parts = [(text, parts_of(text, style)) for text in dict.fromkeys(prompts)]
    parts += [(text, [WeightedText(edited(text, style), 1.0)]) for text in dict.fromkeys(negatives)]
    for text, image in parts:
        if len(image) > 1 or image[0].weight != 1 or image[0].text.changes:
            raise InvalidArgumentError(
                f"prompt: {shown(as_tuple(text)[0])} changes from step to step or is composed "
                f"with AND or a weight; that cannot be combined with {what}"
            )


def texts_of_steps(prompt: StepTexts, steps: StepRange) -> list[Text]:
    """The text in each step that runs."""
    if not prompt.changes:
        return [prompt.at(1, 1)] * steps.count
    return [prompt.at(step, steps.total) for step in range(1, steps.count + 1)]


def warn_about_parts(
    prompts: Sequence[Text], negatives: Sequence[Text], parts: Sequence[list[WeightedText]]
) -> None:
    """Warn about a weight that may be meant as text, and about AND in a negative prompt.

    Args:
      parts: of each prompt.
    """
    for prompt, image in dict(zip(prompts, parts, strict=True)).items():
        if len(image) == 1 and image[0].weight != 1:
            logger.warning(
                "prompt: the end of %s is read as a weight of %g of the whole prompt, as in "
                "AUTOMATIC1111; put a comma after it if it is text",
                shown(as_tuple(prompt)[0][-30:]),
                image[0].weight,
            )
    texts = dict.fromkeys(itertools.chain(*map(as_tuple, negatives)))
    if any(len(split_parts(text)) > 1 for text in texts):
        logger.warning(
            "negative prompt: AND is read as a word, as in AUTOMATIC1111; only prompts are composed"
        )


def warn_about_late_changes(prompts: Sequence[StepTexts], steps: StepRange) -> None:
    """A run that starts from an image ends before the last of its num_inference_steps."""
    if steps.count < steps.total and any(
        each.changes and each.last_change(steps.total) > steps.count for each in prompts
    ):
        logger.warning(
            "prompt: some of its text would change after step %d of %d, which is the last to run",
            steps.count,
            steps.total,
        )
