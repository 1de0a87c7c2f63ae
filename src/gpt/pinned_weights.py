"""Which weights `gpt.weights=pretrained` are, by the name of a size: shipped with this project, or published."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Published:
    """A model.safetensors on the Hugging Face hub. Without a sha256 here, the hub's own for that revision is used.

    n_head   the one size that the shapes of its tensors do not tell
    """

    repo: str
    revision: str
    sha256: str | None = None
    n_head: int | None = None


PUBLISHED = {
    "small": Published(
        "openai-community/gpt2",
        "607a30d783dfa663caf39e06633721c8d4cfcd7e",
        "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707",
        n_head=12,
    ),
    "medium": Published("openai-community/gpt2-medium", "6dcaa7a952f72f9298047fd5137cd6e4f05f41da", n_head=16),
    "large": Published("openai-community/gpt2-large", "32b71b12589c2f8d625668d2335a01cac3249519", n_head=20),
    "xl": Published(
        "openai-community/gpt2-xl",
        "15ea56dee5df4983c59b2538573817e1667135e2",
        "0f8b28eb05a8075f48b61b6f35332978c74fc7763fa9fb4051a1c30511736a6a",
        n_head=25,
    ),
}

# pretrained by this project with src.pretrain (see the card beside the file)
GPT_MINI = Path(__file__).parents[2] / "assets" / "gpt-mini" / "model.safetensors"
SHIPPED = {"mini": (GPT_MINI, "5d1d4c0f488184d98ad061daa74fdd7f7685774f832b64d27a2cb4f765ec487c")}
