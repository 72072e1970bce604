"""Transcripts: what makes two of them equal, and how many mistakes one is away from another."""

import unicodedata
from collections.abc import Sequence


def normalise(text: str) -> str:
    """Lower case letters and digits of any script, and apostrophes within words; single spaces between them.

    Numbers are not spelled out and contractions not resolved: use references that are written as they are spoken.
    """
    folded = unicodedata.normalize("NFKC", text).casefold().replace("\u2019", "'").replace("`", "'")
    kept = "".join(sign if sign == "'" or unicodedata.category(sign)[0] in "LMN" else " " for sign in folded)
    return " ".join(word for word in (word.strip("'") for word in kept.split()) if word)


def num_errors(reference: Sequence[object], estimate: Sequence[object]) -> int:
    """Fewest insertions, deletions and substitutions that turn one sequence into the other (Levenshtein)."""
    previous = list(range(len(estimate) + 1))
    for row, expected in enumerate(reference, 1):
        current = [row]
        for column, found in enumerate(estimate, 1):
            substitution = previous[column - 1] + (expected != found)
            current.append(min(previous[column] + 1, current[-1] + 1, substitution))
        previous = current
    return previous[-1]
