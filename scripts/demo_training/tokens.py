"""Owns the tokenizer: CLIP's byte-pair encoding with merges that keep each word of the captions whole."""

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from .captions import known_words

START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77


def vocabulary(words: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The token numbers and the merges.

    A word is merged from its end towards its start, so words share suffixes and only the last piece can
    ever grow: "sunset" is t, et, set, nset, unset, sunset. Any other word falls back to its bytes.
    """
    alphabet = sorted(ByteLevel.alphabet())
    tokens = alphabet + [f"{letter}</w>" for letter in alphabet]
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        for start in range(len(word) - 2, -1, -1):
            merges[word[start], f"{word[start + 1 :]}</w>"] = None
    tokens += [first + second for first, second in merges] + [START, END]
    return {token: number for number, token in enumerate(tokens)}, list(merges)


def new_tokenizer() -> CLIPTokenizer:
    numbers, merges = vocabulary(known_words())
    return CLIPTokenizer(
        vocab=numbers,
        merges=merges,
        unk_token=END,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        model_max_length=LENGTH,
    )


def encode(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Token numbers (texts, 77), cut and padded as both pipelines do."""
    batch = tokenizer(texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
    numbers = batch["input_ids"]
    assert isinstance(numbers, torch.Tensor)
    return numbers


def without_padding(numbers: torch.Tensor, tokenizer: CLIPTokenizer) -> torch.Tensor:
    """The same captions, cut where the longest ends, up to a multiple of eight so that few lengths occur."""
    longest = int((numbers != tokenizer.eos_token_id).sum(dim=1).max()) + 1
    return numbers[:, : min(-(-longest // 8) * 8, LENGTH)]
