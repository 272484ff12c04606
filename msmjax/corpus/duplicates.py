"""Near-duplicates by MinHash (datasketch): texts whose sets of letter or word n-grams overlap by more than a threshold."""

import re

LETTERS = 5  # for short texts: by words, two questions would be alike that differ in the one that matters
WORDS = 3  # for long ones, which share most of their letters' sequences anyway


class Index:
    """Texts that were added, to be asked for those that another is like. `threshold` is a Jaccard similarity."""

    def __init__(self, threshold: float, words: bool = False):
        self._threshold = threshold
        self._words = words
        from datasketch import MinHashLSH

        self._lsh = MinHashLSH(threshold=threshold, num_perm=128)
        self._hashes: dict = {}  # number -> MinHash

    def add(self, text: str) -> None:
        key, value = len(self._hashes), self._hash(text)
        self._hashes[key] = value
        self._lsh.insert(key, value)

    def like(self, text: str) -> list[int]:
        """The numbers, in order of adding, of the texts that are as similar as the threshold."""
        value = self._hash(text)
        return sorted(key for key in self._lsh.query(value) if value.jaccard(self._hashes[key]) >= self._threshold)

    def _hash(self, text: str):
        from datasketch import MinHash

        words = re.sub(r"\W+", " ", text.casefold()).strip()
        pieces, size = (words.split(), WORDS) if self._words else (words, LETTERS)
        grams = {
            " ".join(pieces[at : at + size]) if self._words else pieces[at : at + size]
            for at in range(max(len(pieces) - size + 1, 1))
        }
        value = MinHash(num_perm=128, seed=1)
        value.update_batch([gram.encode() for gram in grams])
        return value
