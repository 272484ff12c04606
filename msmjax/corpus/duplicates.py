"""Near-duplicates by MinHash (datasketch): texts whose sets of letter n-grams overlap by more than a threshold."""

import re

from datasketch import MinHash, MinHashLSH

GRAM = 5  # letters; words would make two short questions alike that differ in the word that matters


class Index:
    """Texts that were added, to be asked for one that is like another. `threshold` is a Jaccard similarity."""

    def __init__(self, threshold: float):
        self._threshold = threshold
        self._lsh = MinHashLSH(threshold=threshold, num_perm=128)
        self._hashes: dict[int, MinHash] = {}

    def add(self, text: str) -> None:
        key, value = len(self._hashes), _hash(text)
        self._hashes[key] = value
        self._lsh.insert(key, value)

    def has_like(self, text: str) -> bool:
        """Whether a text that was added is as similar as the threshold, by the hashes' estimate."""
        return bool(self.like(text))

    def like(self, text: str) -> list[int]:
        """The numbers, in order of adding, of the texts that are as similar as the threshold."""
        value = _hash(text)
        return sorted(key for key in self._lsh.query(value) if value.jaccard(self._hashes[key]) >= self._threshold)


def _hash(text: str) -> MinHash:
    letters = re.sub(r"\W+", " ", text.casefold()).strip()
    value = MinHash(num_perm=128, seed=1)
    value.update_batch([letters[at : at + GRAM].encode() for at in range(max(len(letters) - GRAM + 1, 1))])
    return value
