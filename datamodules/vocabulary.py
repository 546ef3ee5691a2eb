"""Text to token numbers and back."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from papermix.errors import UserError

UNK, EOS = "<unk>", "<eos>"
# printable ASCII, the end of a line, and the typographic marks that Python's documentation uses
ALPHABET = "\n" + "".join(map(chr, range(32, 127))) + "“”‘’–—…"


def tokenise(text: str, unit: str) -> list[str]:
    """Cut ``text`` into its characters, or into words at spaces with <eos> for each end of a line."""
    return list(text) if unit == "char" else text.replace("\n", f" {EOS} ").split()


class Vocabulary:
    """A list of different symbols; the number of a symbol is its place.

    Args:
        symbols: characters or words. With <unk> among them it stands for every other; without, another one is an error.
        unit: "char" or "word".
    """

    def __init__(self, symbols: Sequence[str], unit: str):
        self.symbols, self.unit = list(symbols), unit
        self._number = {symbol: number for number, symbol in enumerate(self.symbols)}

    def __len__(self) -> int:
        return len(self.symbols)

    @property
    def line_end(self) -> int:
        """Number of the symbol that ends a line; every text is read as if one stood before it."""
        return self._number["\n" if self.unit == "char" else EOS]

    def encode(self, text: str) -> Tensor:
        """Return the token numbers of ``text``, int64 [tokens]. Raises UserError for an unknown symbol if there is no <unk>."""
        number, unknown = self._number, self._number.get(UNK)
        tokens = tokenise(text, self.unit)
        if unknown is None:
            stranger = next((token for token in tokens if token not in number), None)
            if stranger is not None:
                raise UserError(f"the {self.unit} {stranger!r} is not in the vocabulary of {len(self)} {self.unit}s.")
        return torch.tensor([number.get(token, unknown) for token in tokens], dtype=torch.int64)

    def decode(self, tokens: Iterable[int] | Tensor) -> str:
        """Return the text of token numbers; words come separated by spaces, <eos> as an end of line."""
        symbols = [self.symbols[int(token)] for token in tokens]
        if self.unit == "char":
            return "".join(symbols)
        return re.sub(r" ?\n ?", "\n", " ".join("\n" if symbol == EOS else symbol for symbol in symbols))


def characters(text: str) -> Vocabulary:
    """All characters of ``text``, sorted; a closed vocabulary without <unk>."""
    return Vocabulary(sorted(set(text) | {"\n"}), "char")


def words(text: str, min_count: int = 1, size: int | None = None) -> Vocabulary:
    """<unk>, <eos>, then the words that occur at least ``min_count`` times in ``text``, the most frequent first (equals by
    alphabet), ``size`` symbols in all at most."""
    counts = Counter(tokenise(text, "word"))
    kept = [word for word, count in sorted(counts.items(), key=lambda c: (-c[1], c[0])) if count >= min_count]
    return Vocabulary([UNK, EOS, *(word for word in kept if word not in (UNK, EOS))][:size], "word")
