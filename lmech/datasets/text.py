"""Text as windows of tokens, to predict each token from those before it."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Ge

from lmech.datasets import Data, Examples
from lmech.datasets.files import File, Source, locate
from lmech.datasets.transforms import Size, first

Vocabulary = Annotated[int, Ge(2)]

# The checksums are of the files at these commits.
TINYSHAKESPEARE = Source(
    "tinyshakespeare",
    (
        File(
            "input.txt",
            "sha256:86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        ),
    ),
    "https://raw.githubusercontent.com/karpathy/char-rnn/"
    "6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare",
)
WIKITEXT2 = Source(
    "wikitext2",
    (
        File(
            "wiki.train.tokens",
            "sha256:9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f",
            "train.txt",
        ),
        File(
            "wiki.test.tokens",
            "sha256:d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
            "test.txt",
        ),
    ),
    "https://raw.githubusercontent.com/pytorch/examples/"
    "77f55b912142e11fcfdf5b530231fb9c52f181e8/word_language_model/data/wikitext-2",
)
UNKNOWN, END = "<unk>", "<eos>"


def read_text(path: Path) -> str:
    """A text file in UTF-8. Raises ValueError if it is not one, is empty or ends within a line."""
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from error
    if not text.endswith("\n"):
        raise ValueError(f"{path} is empty or ends within a line: truncated, or not it")
    return text


def words_of(text: str) -> list[str]:
    """What stands between white space, and ``<eos>`` at the end of each line."""
    return text.replace("\n", f" {END} ").split()


def windows(tokens: np.ndarray, context: int, size: int | None, split: str) -> Examples:
    """The first ``size`` consecutive windows: x = tokens [t, t + T), y = those one further on.

    They do not overlap; what is left at the end, fewer than T + 1 tokens, is not used. Raises
    ValueError if there are not so many, or none.
    """
    number = (len(tokens) - 1) // context
    if number < 1:
        raise ValueError(
            f"dataset.context={context}, but the {split} text has {len(tokens)} tokens: a window "
            "takes one more than context"
        )
    x, y = (tokens[s : s + number * context].reshape(number, context) for s in (0, 1))
    return first(Examples(x, y), size, split)


def tinyshakespeare(
    context: Size = 64, train_size: Size | None = None, test_size: Size | None = None
) -> Data:
    """1,115,394 characters of Shakespeare's plays (Karpathy 2015), the last tenth to test.

    The vocabulary is the distinct characters of the *whole* file, 65, in the order of their code
    points: a character that only the test part had would else have no number.
    """
    (path,) = locate(TINYSHAKESPEARE)
    text = np.frombuffer(read_text(path).encode("utf-32-le"), "<u4")
    characters, tokens = np.unique(text, return_inverse=True)
    parts = np.split(tokens.astype(np.int32), [len(tokens) * 9 // 10])
    train, test = (
        windows(part, context, size, split)
        for part, size, split in zip(parts, (train_size, test_size), ("train", "test"), strict=True)
    )
    return Data(train, test, len(characters))


def numbered(words: list[str], vocabulary: int | None) -> dict[str, int]:
    """The number of each word that is kept: the most frequent first, ties in alphabetical order.

    ``vocabulary`` counts all of them, with ``<unk>`` for the rest (None: all words). Raises
    ValueError if there are not so many.
    """
    counts = Counter(words)
    order = sorted(counts, key=lambda word: (-counts[word], word))
    if vocabulary is not None and vocabulary > len(order):
        raise ValueError(
            f"dataset.vocabulary={vocabulary}, but the training text has {len(order)} words"
        )
    kept = order[:vocabulary]
    if vocabulary is not None and UNKNOWN not in kept:
        kept[-1] = UNKNOWN
    return {word: number for number, word in enumerate(kept)}


def wikitext2(
    context: Size = 64,
    train_size: Size | None = None,
    test_size: Size | None = None,
    vocabulary: Vocabulary | None = None,
) -> Data:
    """WikiText-2, by words (Merity et al. 2016): 2,088,628 tokens, and 245,569 of the test split.

    ``<eos>`` ends each line. The vocabulary is the training split's, 33,278 words; with
    ``vocabulary`` only so many, the most frequent, are kept, and the rest are ``<unk>``, which is
    one of them. Raises ValueError for a test word that is in no vocabulary with an ``<unk>``.
    """
    train, test = (words_of(read_text(path)) for path in locate(WIKITEXT2))
    numbers = numbered(train, vocabulary)
    unknown = numbers.get(UNKNOWN)

    def tokens(words: list[str]) -> np.ndarray:
        found = [numbers.get(word, unknown) for word in words]
        if unknown is None and None in found:
            word = words[found.index(None)]
            raise ValueError(f"{word!r} is in the test text alone, and there is no {UNKNOWN}")
        return np.asarray(found, np.int32)

    return Data(
        windows(tokens(train), context, train_size, "train"),
        windows(tokens(test), context, test_size, "test"),
        len(numbers),
    )
