"""Which of the words that there are a mistyped one may have meant."""

import difflib
import re
from collections.abc import Iterable

# What others call it.
SYNONYMS = {
    "beta1": "b1",
    "beta2": "b2",
    "eta": "learning_rate",
    "fp32": "float32",
    "fp64": "float64",
    "layers": "depth",
    "logspace": "geomspace",
    "step_size": "learning_rate",
    "xent": "cross_entropy",
}


def nearest(word: str, candidates: Iterable[str], least: float = 0.6) -> str:
    """``; did you mean 'x'?``, or nothing where no spelling is as alike as ``least``."""
    scores = {candidate: _likeness(word, candidate) for candidate in candidates}
    best = max(scores, key=lambda candidate: scores[candidate], default="")
    return f"; did you mean '{best}'?" if best and scores[best] >= (0.0, least) else ""


def _likeness(word: str, candidate: str) -> tuple[float, float]:
    """How surely the candidate was meant, then how alike the two are spelled."""
    ratio = difflib.SequenceMatcher(None, word.lower(), candidate.lower()).ratio()
    section, _, leaf = word.rpartition(".")
    place, _, name = candidate.rpartition(".")
    leaf = SYNONYMS.get(leaf.lower(), leaf)
    if alike(word, candidate):
        return 4.0, ratio
    near = 0.5 if section and section == place else 0.0
    if alike(leaf, name):
        return 2.0 + near, ratio
    if _short_for(leaf, name):
        return 1.0 + 3 * near, ratio
    return 0.0, ratio if word.count(".") == candidate.count(".") else 0.0


def alike(word: str, other: str) -> bool:
    """The same but for case, separators, the order of the parts or a plural's s."""
    parts = [[part.removesuffix("s") for part in _parts(name)] for name in (word, other)]
    return "".join(parts[0]) == "".join(parts[1]) or sorted(parts[0]) == sorted(parts[1])


def _short_for(word: str, other: str) -> bool:
    """Its initials, or the beginning or the last parts of the one are the other."""
    if word.lower() == "".join(part[0] for part in _parts(other)):
        return True
    short, long = sorted((word.lower(), other.lower()), key=len)
    last = _parts(long)[-len(_parts(short)) :] == _parts(short)
    return len(short) >= 3 and (long.startswith(short) or last)


def _parts(name: str) -> list[str]:
    return [part for part in re.split(r"[._-]", name.lower()) if part]
