"""Runs and their answers -> the page, by page.html beside this file. It needs no script and nothing from elsewhere."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from src.data.tokenizer import decode
from src.evaluation import decisions
from src.exporting.model_card import cost, interval, tested, what
from src.serving.predictor import NEW_TOKENS, Predictor

SPAM = (
    "Claim your prize now",
    "Are we still on for lunch tomorrow? I can book a table.",
    "URGENT! Your account is locked. Call 0900 123 456 now to avoid a fee of 50",
    "Sorry, missed your call, was in a meeting. Ring you tonight?",
    "Your free trial ends today, mum says you can keep the book",
)
OTHERS = (
    "A warm, funny film that never loses its way.",
    "The plot is thin, and the jokes are worse.",
    "The central bank raised interest rates for the third time this year.",
    "The home side won the final after extra time.",
    "A new chip halves the energy that phones need.",
)


class Page:
    """What of a page depends on the runs alone is made once."""

    def __init__(self, predictors: Mapping[str, Predictor], writer: Predictor | None) -> None:
        here = FileSystemLoader(Path(__file__).parent)
        environment = Environment(
            loader=here, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        labels = {label for one in predictors.values() for label in one.run.data["labels"]}
        examples = SPAM if labels == {"ham", "spam"} else OTHERS
        self.template = environment.get_template("page.html")
        self.shared = {
            "cards": {option: card(one) for option, one in predictors.items()},
            "examples": examples,
            "writer": writer and writer.id,
            "new_tokens": NEW_TOKENS,
        }
        self.prompt = writer and free_prompt(writer, examples[0])

    def render(
        self,
        text: str = "",
        prompt: str = "",
        answers: Mapping[str, dict[str, Any]] | None = None,
        continuation: str | None = None,
        error: str = "",
    ) -> str:
        """The page after a message or a free prompt, or neither."""
        return self.template.render(
            **self.shared,
            text=text,
            prompt=prompt or self.prompt or "",
            answers=answers or {},
            continuation=continuation,
            error=error,
        )


def card(predictor: Predictor) -> dict[str, Any]:
    """What stands on a run's card whatever is asked."""
    run, result = predictor.run, predictor.run.result
    return {
        "id": predictor.id,
        "writes": run.writes,
        "labels": predictor.labels,
        "limit": predictor.limit,
        "what": what(run),
        "threshold": decisions.in_words(result),
        "tested": [interval(*row) for row in tested(result)],
        "cost": cost(result),
    }


def free_prompt(writer: Predictor, text: str) -> str:
    """What an instruct run was trained to be asked, of a text: something to begin with."""
    before, after = (decode(list(ids)) for ids in (writer.prompt.before, writer.prompt.after))
    return f"{before}{text}{after}"
