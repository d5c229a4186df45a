"""Text datasets: windows, vocabularies, damage, and the counts of the real files."""

import re

import numpy as np
import pooch
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmech import datasets
from lmech.datasets import text
from lmech.datasets.text import numbered, read_text, tinyshakespeare, wikitext2, windows, words_of


@settings(deadline=None)
@given(length=st.integers(2, 60), context=st.integers(1, 20))
def test_windows_are_consecutive_and_predict_the_next_token(length, context):
    tokens = np.arange(length, dtype=np.int32)
    if length <= context:
        with pytest.raises(ValueError, match=f"dataset.context={context}, but the train text has"):
            windows(tokens, context, None, "train")
        return
    x, y, _ = windows(tokens, context, None, "train")
    np.testing.assert_array_equal(x.ravel(), np.arange(x.size))
    np.testing.assert_array_equal(y, x + 1)
    assert length - 1 - context < x.size <= length - 1


def test_the_first_windows_are_kept_and_more_than_there_are_is_an_error():
    tokens = np.arange(10, dtype=np.int32)
    np.testing.assert_array_equal(windows(tokens, 3, 2, "test").x, [[0, 1, 2], [3, 4, 5]])
    with pytest.raises(ValueError, match=r"dataset\.test_size=4, but the test split has 3"):
        windows(tokens, 3, 4, "test")


# files of one's own


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The user's data folder, and neither a cache nor the web."""
    monkeypatch.setenv("LMECH_DATA", str(tmp_path / "own"))
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    return tmp_path / "own"


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


PLAY = b"ba!\n" * 25
NOT_PUBLISHED = pytest.mark.filterwarnings("ignore:.*is not the published file")


def test_characters_are_numbered_by_code_point_and_the_last_tenth_is_to_test(folder):
    put(folder / "tinyshakespeare/input.txt", PLAY)
    with pytest.warns(UserWarning, match="is not the published file"):
        data = tinyshakespeare(context=4)
    assert datasets.outputs(data) == 4
    np.testing.assert_array_equal(data.train.x, [[3, 2, 1, 0]] * 22)
    np.testing.assert_array_equal(data.train.y, [[2, 1, 0, 3]] * 22)
    np.testing.assert_array_equal(data.test.x, [[1, 0, 3, 2], [1, 0, 3, 2]])  # from character 90
    assert {a.dtype for split in data.splits.values() for a in split[:2]} == {np.dtype(np.int32)}


@NOT_PUBLISHED
def test_a_character_of_the_test_part_alone_has_a_number(folder):
    put(folder / "tinyshakespeare/input.txt", PLAY + b"a?\n")
    assert datasets.outputs(tinyshakespeare(context=4, train_size=1, test_size=1)) == 5


LINES = "the cat <unk> the dog \n \n the cat \n"


def test_words_stand_between_spaces_and_each_line_ends_with_eos():
    assert " ".join(words_of(LINES)) == "the cat <unk> the dog <eos> <eos> the cat <eos>"


def test_words_are_numbered_by_frequency_and_ties_in_order():
    words = words_of(LINES)
    order = ["<eos>", "the", "cat", "<unk>", "dog"]
    assert list(numbered(words, None)) == order
    assert list(numbered(words, None).values()) == list(range(5))
    assert list(numbered(words, 4)) == order[:4]
    assert list(numbered(words, 3)) == ["<eos>", "the", "<unk>"]
    assert list(numbered(["a", "b", "b"], 2)) == ["b", "<unk>"]
    with pytest.raises(ValueError, match=r"dataset\.vocabulary=6, but the training text has 5"):
        numbered(words, 6)


@NOT_PUBLISHED
@pytest.mark.parametrize("vocabulary", [None, 4])
def test_rare_words_and_those_of_the_test_text_alone_are_unknown(folder, vocabulary):
    put(folder / "wikitext2/wiki.train.tokens", LINES.encode())
    put(folder / "wikitext2/wiki.test.tokens", b"the dog mews \n")
    data = wikitext2(context=3, vocabulary=vocabulary)
    dog = 4 if vocabulary is None else 3
    np.testing.assert_array_equal(data.test.x, [[1, dog, 3]])
    np.testing.assert_array_equal(data.test.y, [[dog, 3, 0]])
    assert datasets.outputs(data) == (vocabulary or 5)


@NOT_PUBLISHED
def test_a_word_that_nothing_stands_for_is_named(folder):
    put(folder / "wikitext2/wiki.train.tokens", b"a b \n")
    put(folder / "wikitext2/wiki.test.tokens", b"b c \n")
    with pytest.raises(ValueError, match="'c' is in the test text alone, and there is no <unk>"):
        wikitext2(context=1)
    assert wikitext2(context=1, vocabulary=2).outputs == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty or ends within a line"),
        (PLAY[:-2], "is empty or ends within a line: truncated"),
        ("é\n".encode()[:1], "no text in UTF-8"),
        (b"\x1f\x8b\x08\x00\xff\n", "no text in UTF-8"),
    ],
)
def test_a_damaged_text_is_one_line_that_names_the_file(tmp_path, content, message):
    put(tmp_path / "input.txt", content)
    with pytest.raises(ValueError, match=rf"input\.txt .*{message}") as error:
        read_text(tmp_path / "input.txt")
    assert "\n" not in str(error.value)


# the real files


@pytest.mark.usefixtures("data_folder")
def test_tiny_shakespeare_has_the_published_counts():
    data = tinyshakespeare(context=1)
    assert datasets.outputs(data) == 65
    assert (len(data.train.x) + 1, len(data.test.x) + 1) == (1_003_854, 111_540)
    assert data.train.y.max() == 64


def test_wikitext2_has_the_published_counts(data_folder):
    data = wikitext2(context=1)
    assert datasets.outputs(data) == 33_278
    assert (len(data.train.x) + 1, len(data.test.x) + 1) == (2_088_628, 245_569)
    validation = words_of(read_text(text.Path(data_folder) / "wikitext2/wiki.valid.tokens"))
    assert len(validation) == 217_646
    frequent = np.bincount(data.train.y.ravel(), minlength=33_278)
    assert (np.diff(frequent[1:]) <= 1).all()  # the first token of all is nobody's label


@pytest.mark.usefixtures("data_folder")
def test_the_thousand_most_frequent_words_keep_their_numbers():
    few, all_of_them = wikitext2(train_size=50, vocabulary=1000), wikitext2(train_size=50)
    kept = all_of_them.train.x < 1000
    assert few.outputs == 1000
    np.testing.assert_array_equal(few.train.x[kept], all_of_them.train.x[kept])
    assert len(set(few.train.x[~kept])) == 1


@pytest.mark.parametrize("source", [text.TINYSHAKESPEARE, text.WIKITEXT2])
def test_the_sources_are_fixed_by_a_commit_and_a_checksum(source):
    assert re.search(r"raw\.githubusercontent\.com/\w+/[\w-]+/[0-9a-f]{40}/", source.url)
    for file in source.files:
        assert re.fullmatch(r"sha256:[0-9a-f]{64}", file.checksum)
