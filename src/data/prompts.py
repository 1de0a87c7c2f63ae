"""A text and what is to be done with it -> one prompt; a class -> the tokens of its answer.

    template: "{instruction}\\n\\nText:\\n{text}\\n\\nAnswer:"   ->   before the text | the text | after it
    answers:  {ham: "no", spam: "yes"}                     ->   " no" <|endoftext|>,  " yes" <|endoftext|>

The pieces are tokenized apart, so that a text has the same tokens in a prompt as alone; where line breaks
part them, as in the default, these are also the tokens of the whole.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from src.data.tokenizer import END_OF_TEXT, encode
from src.errors import InputError


@dataclass(frozen=True)
class Prompt:
    """Token ids before and after a text, and how many are kept free for the answer; `Prompt()` is the text alone."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    reserve: int = 0

    @property
    def overhead(self) -> int:
        """Tokens of a sequence, prompt and answer, that are not the text's."""
        return len(self.before) + len(self.after) + self.reserve

    def around(self, text: Sequence[int], limit: int) -> list[int]:
        """The prompt with as much of `text`, from its start, as lets prompt and answer be `limit` tokens long."""
        return [*self.before, *text[: limit - self.overhead], *self.after]


@dataclass(frozen=True)
class Question:
    """What is asked of the texts of one dataset: its class labels, in the order of their numbers, from first_class on,
    the instruction, and the answer of each class."""

    name: str
    labels: tuple[str, ...]
    instruction: str | None = None
    answers: Mapping[str, str] | None = None
    first_class: int = 0

    @property
    def classes(self) -> list[int]:
        """The class numbers."""
        return list(range(self.first_class, self.first_class + len(self.labels)))


def questions_of(data: Mapping[str, Any], labels: Sequence[str]) -> list[Question]:
    """The questions of a data section whose classes are `labels`: one, or one of each source of a mixture, whose
    classes are named <source>/<label>."""
    if "sources" not in data:
        return [Question("", tuple(labels), data.get("instruction"), data.get("answers"))]
    found, first = list[Question](), 0
    for name, source in data["sources"].items():
        own = tuple(label.removeprefix(f"{name}/") for label in labels if label.startswith(f"{name}/"))
        found.append(Question(str(name), own, source.get("instruction"), source.get("answers"), first))
        first += len(own)
    return found


class Task(NamedTuple):
    """A question as tokens: its name and prompt, and of each class its number, the words of its answer, and their
    tokens with <|endoftext|>, so that no answer begins another."""

    name: str
    prompt: Prompt
    classes: list[int]
    words: list[str]
    answers: list[list[int]]


def make_task(question: Question, template: str) -> Task:
    """The tokens of a question. Without an instruction it asks which of the answers a text is; the answer of a class is
    by default its name. Raises InputError for a template without a place for the text, and for answers that are
    missing, empty or equal."""
    if template.count("{text}") != 1 or template.count("{instruction}") > 1:
        raise InputError(
            f"task.template needs {{text}} exactly once and {{instruction}} at most once, got {template!r}"
        )
    words = _words(question.labels, question.answers)
    asked = question.instruction or f"Which of these is the following text: {', '.join(words[:-1])} or {words[-1]}?"
    before, after = (part.replace("{instruction}", asked) for part in template.split("{text}"))
    space = "" if template[-1].isspace() else " "
    head, tail, *tokens = encode([before, after, *(space + word for word in words)])
    longest = max(map(len, tokens))  # <|endoftext|> is predicted after them, never read
    prompt = Prompt(tuple(head), tuple(tail), longest)
    return Task(question.name, prompt, question.classes, words, [[*ids, END_OF_TEXT] for ids in tokens])


def parse(written: str, words: Sequence[str]) -> int:
    """Which of `words` a model wrote, -1 for none of them: the one that is the same but for case, white space around it
    and full stops at its end."""
    said = normalize(written)
    return next((i for i, word in enumerate(words) if normalize(word) == said), -1)


def normalize(answer: str) -> str:
    """An answer without what does not count, whether it was written by a model or given in data.answers."""
    return re.sub(r"[\s.]+$", "", answer).lstrip().casefold()


def _text(word: object, key: str) -> str:
    """A class or an answer as text. Raises InputError for what YAML reads as something else: which word stood there is
    lost."""
    if isinstance(word, bool) or not isinstance(word, str | int):
        raise InputError(
            f"data.answers: {key} is {str(word).lower()}, no text: YAML reads yes, no, on, off, true, false, null and "
            'decimals its own way, so put the word in quotes, such as ham: "no"'
        )
    return str(word)


def _words(labels: Sequence[str], answers: Mapping[str, str] | None) -> list[str]:
    given = {
        _text(label, "a class"): _text(word, f"the answer of class {label}")
        for label, word in (answers or {label: label for label in labels}).items()
    }
    if missing := sorted(set(labels) - set(given)):
        raise InputError(f"data.answers has no answer for class {missing[0]}: the classes are {', '.join(labels)}")
    words = [given[label].strip() for label in labels]
    for i, word in enumerate(words):
        if not normalize(word):
            raise InputError(f"data.answers: the answer of class {labels[i]} is empty")
        if (place := parse(word, words[:i])) >= 0:
            raise InputError(
                f"data.answers: {words[place]!r} and {word!r} are one answer of two classes, {labels[place]} and "
                f"{labels[i]}; answers must differ in more than case, white space and full stops"
            )
    return words
