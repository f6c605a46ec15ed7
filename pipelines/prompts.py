"""Turning prompts into embeddings: batched through the CLIP and T5 encoders, and kept for the next time."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

import torch

from pipelines.request import TokenCount

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

Text: TypeAlias = tuple[str, int]
"""A prompt, and how many of the CLIP encoders' layers to skip."""


@dataclass(frozen=True)
class Embedding:
    """One encoded prompt.

    Attributes:
        states: (tokens, dim) hidden states.
        pooled: (dim) pooled output.
        count: of the prompt's tokens.
    """

    states: torch.Tensor
    pooled: torch.Tensor
    count: TokenCount

    @classmethod
    def zeros_like(cls, other: "Embedding") -> "Embedding":
        return cls(torch.zeros_like(other.states), torch.zeros_like(other.pooled), TokenCount())


def count_tokens(tokenizer: Any, texts: Sequence[str], max_length: int, marks: int) -> list[TokenCount]:
    """Count each text's tokens; those beyond `max_length`, with the text's `marks`, are dropped."""
    lengths = [len(tokens) - marks for tokens in tokenizer(list(texts), verbose=False).input_ids]
    return [TokenCount(length, max(0, length - (max_length - marks))) for length in lengths]


class EmbeddingCache(Generic[Key, Value]):
    """The embeddings used last; a miss is encoded together with the other misses of its batch.

    `hits` and `misses` count the texts that were asked for; one that is asked for twice at once is encoded once.
    """

    def __init__(self, capacity: int = 256) -> None:
        self.hits = 0
        self.misses = 0
        self._capacity = capacity
        self._kept: OrderedDict[Key, Value] = OrderedDict()

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()

    def get(self, keys: Sequence[Key], encode: Callable[[list[Key]], list[Value]]) -> list[Value]:
        """The value of each key, calling `encode` at most once, with every key that is not kept."""
        missing = [key for key in dict.fromkeys(keys) if key not in self._kept]
        fresh = dict(zip(missing, encode(missing), strict=True)) if missing else {}
        self.misses += len(missing)
        self.hits += len(keys) - len(missing)
        found = {key: fresh[key] if key in fresh else self._kept[key] for key in keys}
        for key, value in found.items():
            self._kept[key] = value
            self._kept.move_to_end(key)
        while len(self._kept) > self._capacity:
            self._kept.popitem(last=False)
        return [found[key] for key in keys]


def clip_states(
    tokenizer: Any,
    encoder: Any,
    texts: Sequence[str],
    skips: Sequence[int],
    max_length: int,
    device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode texts with one CLIP encoder.

    Args:
        skips: for each text, how many further layers to skip; 0 takes the penultimate hidden state, as SDXL and SD3 do.
        max_length: tokens, padding included.

    Returns:
        (texts, tokens, dim) hidden states and the (texts, dim) pooled output.
    """
    tokens = tokenizer(list(texts), padding="max_length", max_length=max_length, truncation=True, return_tensors="pt")
    output = encoder(tokens.input_ids.to(device), output_hidden_states=True)
    layers = output.hidden_states
    depths = [max(-len(layers), -(skip + 2)) for skip in skips]
    states = torch.stack([layers[depth][row] for row, depth in enumerate(depths)])
    return states, output[0]


def t5_states(
    tokenizer: Any, encoder: Any, texts: Sequence[str], max_length: int, device: torch.device
) -> torch.Tensor:
    """Encode texts with T5: (texts, max_length, dim)."""
    tokens = tokenizer(
        list(texts),
        padding="max_length",
        max_length=max_length,
        truncation=True,
        add_special_tokens=True,
        return_tensors="pt",
    )
    states: torch.Tensor = encoder(tokens.input_ids.to(device))[0]
    return states
