"""Datasets: what the arrays hold, what a damaged file does, and where the files are found."""

import gzip
import hashlib
import io
import math
import struct
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pooch
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from sklearn.datasets import load_digits

from lmech import datasets
from lmech.datasets import Data, Examples
from lmech.datasets.chebyshev import chebyshev
from lmech.datasets.cifar10 import RECORD, SOURCE, cifar10, read_batch
from lmech.datasets.clusters import gaussian_clusters
from lmech.datasets.digits import digits
from lmech.datasets.files import DataNotFound, File, Source, locate
from lmech.datasets.gaussian import gaussian
from lmech.datasets.mnist import fashion_mnist, mnist, read_idx
from lmech.datasets.one_hot import one_hot
from lmech.datasets.piecewise import piecewise_linear
from lmech.datasets.transforms import moments, prepare

CLOSED = "http://127.0.0.1:9"  # the discard port: nothing listens there


# digits


def test_digits_splits_the_file_in_order_into_1500_and_297():
    data = digits(standardize="none")
    bunch = load_digits()
    assert data.train.x.shape == (1500, 64)
    assert data.test.x.shape == (297, 64)
    np.testing.assert_array_equal(data.train.y, bunch.target[:1500])
    np.testing.assert_array_equal(data.test.y, bunch.target[1500:])
    np.testing.assert_allclose(np.vstack([data.train.x, data.test.x]) * 16, bunch.data)


def test_digits_have_ten_outputs():
    assert datasets.outputs(digits()) == 10


def test_standardised_digits_have_mean_0_and_std_1_but_for_pixels_that_never_vary():
    data = digits()
    constant = np.ptp(load_digits().data[:1500], axis=0) == 0
    assert constant.any()
    np.testing.assert_allclose(data.train.x.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(data.train.x[:, ~constant].std(axis=0), 1)
    assert (data.train.x[:, constant] == 0).all()
    assert np.isfinite(data.test.x).all()


def test_the_test_images_are_standardised_by_the_training_images():
    raw = load_digits().data
    pixel = 20
    expected = (raw[1500:, pixel] - raw[:1500, pixel].mean()) / raw[:1500, pixel].std()
    np.testing.assert_allclose(digits().test.x[:, pixel], expected)


def test_globally_standardised_digits_have_mean_0_and_std_1_over_all_pixels():
    x = digits(standardize="global").train.x
    np.testing.assert_allclose([x.mean(), x.std()], [0, 1], atol=1e-12)


def test_unstandardised_digits_lie_between_0_and_1():
    data = digits(standardize="none")
    x = np.vstack([data.train.x, data.test.x])
    assert (x.min(), x.max()) == (0, 1)


def test_unflattened_digits_are_images_with_a_channel():
    data = digits(flatten=False, standardize="none")
    assert data.train.x.shape == (1500, 8, 8, 1)
    np.testing.assert_allclose(data.train.x[..., 0] * 16, load_digits().images[:1500])


@pytest.mark.parametrize("size", [1797, 5000])
def test_digits_without_a_test_image_are_an_error(size):
    with pytest.raises(ValueError, match=f"dataset.train_size={size}"):
        digits(train_size=size)


# chebyshev


def test_the_spread_of_gaussian_clusters_scales_what_lies_around_their_centres():
    centres = gaussian_clusters(12, 6, clusters=1, spread=0.0)
    for split in ("train", "test"):
        at, narrow, wide = (
            getattr(gaussian_clusters(12, 6, clusters=1, spread=spread), split).x
            for spread in (0.0, 0.3, 1.0)
        )
        np.testing.assert_allclose(narrow - at, 0.3 * (wide - at), atol=1e-12)
    lengths = np.linalg.norm(centres.train.x, axis=1)
    np.testing.assert_allclose(lengths, 5.0)


def test_gaussian_clusters_are_balanced_and_lie_around_centres_on_a_sphere():
    data = gaussian_clusters(
        *(6000, 60), classes=4, clusters=2, dimension=16, separation=40.0, data_seed=3
    )
    for split in data.splits.values():
        assert len(set(np.bincount(split.y))) == 1
    for k in range(4):
        own = data.train.x[data.train.y == k]
        near_first = np.linalg.norm(own - own[0], axis=1) < 20
        groups = [own[near_first], own[~near_first]]
        assert [len(group) for group in groups] == [750, 750]
        for group in groups:
            centre = group.mean(0)  # σ of each entry: 1/√750
            np.testing.assert_allclose(np.linalg.norm(centre), 40, atol=5 / math.sqrt(750))
            np.testing.assert_allclose((group - centre).var(), 1, atol=0.06)  # 5 σ


@pytest.mark.parametrize(
    ("imbalance", "counts"), [(1.0, [5, 5, 5]), (4.0, [9, 4, 2]), (9, [10, 4, 1])]
)
def test_imbalanced_clusters_fall_geometrically_in_the_training_set_alone(imbalance, counts):
    data = gaussian_clusters(15, 9, classes=3, imbalance=imbalance)
    exact = imbalance ** -np.array([0, 0.5, 1])
    assert np.bincount(data.train.y).tolist() == counts
    assert np.abs(15 * exact / exact.sum() - counts).max() < 1
    assert np.bincount(data.test.y).tolist() == [3, 3, 3]


def test_every_one_hot_example_has_an_input_of_its_own():
    data = one_hot([3, 1, 2])
    np.testing.assert_array_equal(data.train.x, np.eye(6))
    np.testing.assert_array_equal(data.train.y, [0, 0, 0, 1, 2, 2])
    with pytest.raises(ValueError, match="two classes or more"):
        one_hot([5])


def test_chebyshev_targets_are_the_cosine_form():
    data = chebyshev(degree=6, train_size=20)
    for x, y, _ in data[:2]:
        np.testing.assert_allclose(y, np.cos(6 * np.arccos(x)), atol=1e-12)


def test_chebyshev_tests_at_the_midpoints_of_the_training_points():
    data = chebyshev(train_size=20)
    x = np.linspace(-1, 1, 20)
    np.testing.assert_allclose(data.train.x, x[:, None])
    np.testing.assert_allclose(data.test.x, ((x[1:] + x[:-1]) / 2)[:, None])
    assert data.test.y.shape == (19, 1)


def test_chebyshev_has_one_output():
    assert datasets.outputs(chebyshev()) == 1


def test_chebyshev_on_one_point_is_an_error():
    with pytest.raises(ValueError, match="train_size"):
        chebyshev(train_size=1)


# piecewise_linear


def test_a_piecewise_linear_target_has_its_slopes_and_kinks_and_is_0_at_0():
    kinks, slopes = [-0.5, 0.25, 0.75], [1.0, -2.0, 0.5, 3.0]
    data = piecewise_linear(kinks, slopes, train_size=9, test_size=2001)
    x, y = data.test.x[:, 0], data.test.y[:, 0]
    middle = (x[1:] + x[:-1]) / 2
    np.testing.assert_allclose(
        np.diff(y) / np.diff(x), np.asarray(slopes)[np.searchsorted(kinks, middle)], rtol=1e-9
    )
    assert y[1000] == 0
    np.testing.assert_allclose(data.train.y[:, 0], np.interp(data.train.x[:, 0], x, y), atol=1e-12)


def test_the_preset_is_a_clipped_line():
    x, y, _ = piecewise_linear([-0.4, 0.4], [0.0, 2.0, 0.0]).train
    np.testing.assert_allclose(y, 2 * np.clip(x, -0.4, 0.4), atol=1e-12)


@pytest.mark.parametrize(("kinks", "slopes"), [([0.5, 0.1], [0, 1, 2]), ([0.5], [0.0, 1.0, 2.0])])
def test_kinks_and_slopes_that_do_not_fit_are_an_error(kinks, slopes):
    with pytest.raises(ValueError, match="one slope more"):
        piecewise_linear(kinks, slopes)


# idx files


def idx(array):
    sizes = struct.pack(f">{array.ndim}i", *array.shape)
    return b"\0\0\x08" + bytes([array.ndim]) + sizes + array.tobytes()


def random_bytes(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("shape", [(7,), (4, 3, 5)])
def test_an_idx_file_reads_back(tmp_path, shape):
    array = random_bytes(*shape)
    file = tmp_path / "a.gz"
    file.write_bytes(gzip.compress(idx(array)))
    read = read_idx(file)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, array)


WHOLE = idx(random_bytes(4, 3, 5))
PACKED = gzip.compress(WHOLE, mtime=0)


@pytest.mark.parametrize(
    "damaged",
    [
        pytest.param(b"", id="empty"),
        pytest.param(WHOLE, id="not gzipped"),
        pytest.param(PACKED[: len(PACKED) // 2], id="truncated gzip"),
        pytest.param(PACKED[:-1], id="truncated gzip trailer"),
        pytest.param(PACKED[:10] + b"\xff" * (len(PACKED) - 10), id="overwritten gzip"),
        pytest.param(gzip.compress(b"\0\0\x0d" + WHOLE[3:]), id="idx of floats"),
        pytest.param(gzip.compress(b"PK" + WHOLE), id="wrong magic"),
        pytest.param(gzip.compress(WHOLE[:-1]), id="a value short"),
        pytest.param(gzip.compress(WHOLE + b"\0"), id="a value too long"),
        pytest.param(gzip.compress(WHOLE[:10]), id="ends within the header"),
    ],
)
def test_a_damaged_idx_file_is_a_value_error_that_names_it(tmp_path, damaged):
    file = tmp_path / "a.gz"
    file.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"a\.gz"):
        read_idx(file)


@pytest.mark.usefixtures("cache")
def test_mnist_reads_the_four_files_of_the_users_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LMECH_DATA", str(tmp_path / "own"))
    images, labels = random_bytes(6, 28, 28), random_bytes(6) % 10
    for split, rows in (("train", slice(4)), ("t10k", slice(4, 6))):
        put(tmp_path / "own/mnist", f"{split}-images-idx3-ubyte.gz", packed(images[rows]))
        put(tmp_path / "own/mnist", f"{split}-labels-idx1-ubyte.gz", packed(labels[rows]))
    with pytest.warns(UserWarning, match="is not the published file") as warned:
        data = mnist(test_size=1, standardize="none")
    assert len(warned) == 4
    np.testing.assert_allclose(data.train.x * 255, images[:4].reshape(4, -1))
    np.testing.assert_array_equal(data.train.y, labels[:4])
    np.testing.assert_allclose(data.test.x * 255, images[4:5].reshape(1, -1))


def packed(array):
    return gzip.compress(idx(array))


# CIFAR-10's binary files


def test_a_cifar_record_is_a_label_and_three_row_major_channels(tmp_path):
    raw = random_bytes(10_000, RECORD)
    file = tmp_path / "batch.bin"
    raw.tofile(file)
    batch = read_batch(file)
    assert batch.x.shape == (10_000, 32, 32, 3)
    np.testing.assert_array_equal(batch.y, raw[:, 0])
    for record, row, column, channel in [(0, 0, 0, 0), (17, 3, 30, 1), (9_999, 31, 5, 2)]:
        byte = raw[record, 1 + 1024 * channel + 32 * row + column]
        assert batch.x[record, row, column, channel] == byte
    few = Examples(batch.x[:50], batch.y[:50])
    flat = prepare(few, few, None, None, "none", flatten=True).train.x
    np.testing.assert_allclose(flat * 255, raw[:50, 1:])


@pytest.mark.parametrize("change", [-1, 1, -RECORD])
def test_a_cifar_file_of_another_size_is_an_error(tmp_path, change):
    file = tmp_path / "batch.bin"
    file.write_bytes(bytes(10_000 * RECORD + change))
    with pytest.raises(ValueError, match=f"{10_000 * RECORD + change} bytes"):
        read_batch(file)


# subsets and standardisation


@settings(deadline=None, max_examples=30)
@given(
    n=st.integers(1, 6000),
    levels=st.integers(1, 256),
    standardize=st.sampled_from(["pixel", "global"]),
    seed=st.integers(0, 100),
)
def test_moments_are_numpys_mean_and_std(n, levels, standardize, seed):
    x = np.random.default_rng(seed).integers(0, levels, (n, 2, 1, 3)).astype(np.uint8)
    axis = 0 if standardize == "pixel" else None
    mean, std = moments(x, standardize)
    expected = x.std(axis=axis)
    np.testing.assert_allclose(mean, x.mean(axis=axis), rtol=1e-12)
    np.testing.assert_allclose(std, np.where(expected > 0, expected, 1), rtol=1e-9)


def images(n, seed):
    return Examples(random_bytes(n, 4, 4, 3, seed=seed), random_bytes(n, seed=seed) % 10)


def test_a_subset_is_standardised_by_the_whole_training_set():
    train, test = images(40, 1), images(20, 2)
    whole = prepare(train, test, None, None, "pixel", flatten=True)
    part = prepare(train, test, 7, 5, "pixel", flatten=True)
    assert isinstance(part, Data)
    for subset, examples, size in zip(part[:2], whole[:2], (7, 5), strict=True):
        np.testing.assert_array_equal(subset.x, examples.x[:size])
        np.testing.assert_array_equal(subset.y, examples.y[:size])


@pytest.mark.parametrize(("sizes", "named"), [((41, None), "train"), ((None, 21), "test")])
def test_more_examples_than_there_are_is_an_error(sizes, named):
    with pytest.raises(ValueError, match=f"dataset.{named}_size"):
        prepare(images(40, 1), images(20, 2), *sizes, "pixel", flatten=True)


# finding the files


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder, no folder of the user's, and no proxy before the loopback."""
    monkeypatch.delenv("LMECH_DATA", raising=False)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    return tmp_path / "cache" / "lmech"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def web(tmp_path):
    """A folder and the address that serves it."""
    folder = tmp_path / "web"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


CONTENTS = {"a.bin": b"first", "b.bin": b"second"}


def checksum(content, algorithm="md5"):
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"


def source(url=CLOSED, **changes):
    files = tuple(File(name, checksum(content)) for name, content in CONTENTS.items())
    return Source("things", files, url)._replace(**changes)


def put(folder, name, content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


def put_all(folder):
    for name, content in CONTENTS.items():
        put(folder, name, content)


def test_the_users_folder_goes_before_the_cache(cache, tmp_path, monkeypatch):
    put_all(tmp_path / "own/things")
    put_all(cache / "things")
    assert locate(source()) == [cache / "things" / name for name in CONTENTS]
    monkeypatch.setenv("LMECH_DATA", str(tmp_path / "own"))
    assert locate(source()) == [tmp_path / "own/things" / name for name in CONTENTS]


def test_a_folder_that_lacks_a_file_is_not_used(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("LMECH_DATA", str(tmp_path / "own"))
    put(tmp_path / "own/things", "a.bin", CONTENTS["a.bin"])
    put_all(cache / "things")
    assert locate(source()) == [cache / "things" / name for name in CONTENTS]


def test_a_file_that_differs_from_the_published_one_is_used_with_a_warning(cache):
    put_all(cache / "things")
    put(cache / "things", "b.bin", b"another")
    with pytest.warns(UserWarning, match=r"b\.bin is not the published file") as warned:
        paths = locate(source())
    assert len(warned) == 1
    assert paths[1].read_bytes() == b"another"


def test_data_that_is_nowhere_is_an_error_that_names_every_file_and_folder(
    cache, tmp_path, monkeypatch
):
    monkeypatch.setenv("LMECH_DATA", str(tmp_path / "own"))
    with pytest.raises(DataNotFound) as error:
        locate(source())
    message = str(error.value)
    for part in (*CONTENTS, str(tmp_path / "own/things"), str(cache / "things"), CLOSED):
        assert part in message
    assert "\n" not in message


def test_data_that_is_nowhere_tells_of_the_users_folder_if_there_is_none(cache):
    with pytest.raises(DataNotFound, match=r"set LMECH_DATA") as error:
        locate(source())
    assert str(cache / "things") in str(error.value)


def test_missing_files_are_downloaded_into_the_cache_once(cache, web):
    folder, url = web
    put_all(folder)
    paths = locate(source(url))
    assert paths == [cache / "things" / name for name in CONTENTS]
    assert [path.read_bytes() for path in paths] == list(CONTENTS.values())
    assert locate(source(CLOSED)) == paths


def test_a_file_may_have_another_name_where_it_comes_from(cache, web):
    folder, url = web
    put(folder, "other.bin", CONTENTS["a.bin"])
    file = File("a.bin", checksum(CONTENTS["a.bin"]), "other.bin")
    (path,) = locate(source(url, files=(file,)))
    assert path == cache / "things/a.bin"
    assert path.read_bytes() == CONTENTS["a.bin"]


def test_a_download_with_a_wrong_checksum_is_an_error_and_leaves_no_file(cache, web):
    folder, url = web
    put_all(folder)
    put(folder, "b.bin", b"another")
    with pytest.raises(DataNotFound, match="hash"):
        locate(source(url))
    assert not (cache / "things/b.bin").exists()


def pack(file):
    with tarfile.open(file, "w:gz") as archive:
        for name, content in CONTENTS.items():
            member = tarfile.TarInfo(f"inner/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def test_an_archive_is_downloaded_and_unpacked_into_the_cache(cache, web):
    folder, url = web
    pack(folder / "all.tar.gz")
    archive = File("all.tar.gz", checksum((folder / "all.tar.gz").read_bytes()))
    paths = locate(source(url, folder="things/inner", archive=archive))
    assert paths == [cache / "things/inner" / name for name in CONTENTS]
    assert [path.read_bytes() for path in paths] == list(CONTENTS.values())


def test_an_archive_with_a_wrong_checksum_is_an_error_and_unpacks_nothing(cache, web):
    folder, url = web
    pack(folder / "all.tar.gz")
    archive = File("all.tar.gz", checksum(b"another archive"))
    with pytest.raises(DataNotFound, match="hash"):
        locate(source(url, folder="things/inner", archive=archive))
    assert not (cache / "things/inner").exists()


# the real files


@pytest.mark.usefixtures("data_folder")
def test_mnist_has_the_published_class_counts():
    data = mnist(standardize="none")
    assert data.train.x.shape == (60_000, 784)
    assert data.test.x.shape == (10_000, 784)
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(data.train.y).tolist() == counts


@pytest.mark.usefixtures("data_folder")
def test_fashion_mnist_has_6000_training_images_of_each_class():
    data = fashion_mnist(test_size=100, standardize="none")
    assert np.bincount(data.train.y).tolist() == [6000] * 10
    assert data.test.x.shape == (100, 784)


@pytest.mark.usefixtures("data_folder")
def test_the_first_5000_cifar_images_are_standardised_by_all_50000():
    *batches, _ = (read_batch(path).x for path in locate(SOURCE))
    data = cifar10(train_size=5000, test_size=10)
    assert data.train.x.shape == (5000, 3072)
    corner = np.concatenate([batch[:, 0, 0] for batch in batches])
    expected = (corner[:5000] - corner.mean(axis=0)) / corner.std(axis=0)
    np.testing.assert_allclose(data.train.x[:, [0, 1024, 2048]], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("data_folder")
def test_cifar_has_the_published_channel_means():
    *batches, _ = (read_batch(path).x for path in locate(SOURCE))
    mean, _ = moments(np.concatenate(batches), "pixel")
    assert mean.shape == (32, 32, 3)
    np.testing.assert_allclose(mean.mean(axis=(0, 1)) / 255, [0.4914, 0.4822, 0.4465], atol=5e-5)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((4, 2)), np.zeros(4), "labels are integers"),
        (np.zeros((4, 2)), np.zeros((4, 2, 3), np.int64), "labels are integers"),
        (np.zeros((4, 2)), np.zeros(3, np.int64), "4 inputs and 3 targets"),
        (np.zeros((4, 2)), np.full(4, -1), "count from 0"),
    ],
)
def test_targets_that_no_loss_can_read_are_refused(x, y, message):
    with pytest.raises(ValueError, match=message):
        datasets.check(datasets.Data(datasets.Examples(x, y), datasets.Examples(x, y)))


@pytest.mark.parametrize(
    ("y", "expected"),
    [
        (np.array([[0, 1, 2], [6, 1, 1]]), 7),
        (np.zeros((2, 3, 4)), 4),
    ],
)
def test_sequences_have_labels_or_vectors_at_each_position(y, expected):
    split = datasets.Examples(np.zeros((2, 3), np.int64), y)
    datasets.check(datasets.Data(split, split))
    assert datasets.outputs(datasets.Data(split, split)) == expected


def test_a_vocabulary_counts_words_that_occur_in_no_example():
    split = datasets.Examples(np.zeros((2, 3), np.int64), np.full((2, 3), 4))
    assert datasets.outputs(datasets.Data(split, split, 9)) == 9
    with pytest.raises(ValueError, match="train labels go up to 4, and there are 4 classes"):
        datasets.check(datasets.Data(split, split, 4))


def test_a_class_that_only_the_test_split_has_still_gets_an_output():
    x = np.zeros((2, 1))
    split = datasets.Examples(x, np.array([0, 1])), datasets.Examples(x, np.array([0, 7]))
    assert datasets.outputs(datasets.Data(*split)) == 8


def test_gaussian_inputs_have_the_spectrum_that_is_asked_for_and_the_same_draws_every_time():
    kept = {"train_size": 20_000, "dimension": 8, "decay": 1.0}
    data = gaussian(**kept)
    variances = data.train.x.var(axis=0)
    expected = 1 / np.arange(1, 9)
    np.testing.assert_allclose(variances, expected / expected.mean(), rtol=5 * (2 / 20_000) ** 0.5)
    np.testing.assert_array_equal(data.train.x, gaussian(**kept).train.x)
    assert not np.array_equal(data.train.x, gaussian(**kept, data_seed=1).train.x)


def test_a_teachers_labels_are_a_function_of_the_inputs_and_random_ones_are_even():
    taught, drawn = (gaussian(20_000, 0, labels=labels).train for labels in ("teacher", "random"))
    np.testing.assert_array_equal(taught.x[:5], gaussian(20_000, 0, labels="random").train.x[:5])
    shares = np.bincount(drawn.y, minlength=10) / 20_000
    assert np.abs(shares - 0.1).max() < 5 * (0.09 / 20_000) ** 0.5
    assert set(taught.y) == set(range(10))


def separable(x, y, classes):
    """Whether some W has (W_y − W_c)·x ≥ 1 for every example and every other class c."""
    rows = [
        np.kron(np.eye(classes)[y[i]] - np.eye(classes)[c], x[i])
        for i in range(len(x))
        for c in range(classes)
        if c != y[i]
    ]
    A = -np.asarray(rows)
    return linprog(np.zeros(A.shape[1]), A, -np.ones(len(A)), bounds=(None, None)).status == 0


@pytest.mark.parametrize(("labels", "expected"), [("linear", True), ("random", False)])
def test_only_a_linear_maps_labels_are_linearly_separable(labels, expected):
    data = gaussian(120, 1, dimension=6, classes=3, decay=1.5, labels=labels)
    assert set(data.train.y) == {0, 1, 2}
    assert separable(data.train.x, data.train.y, 3) == expected
    taught = gaussian(120, 1, dimension=6, classes=3, decay=1.5)
    np.testing.assert_array_equal(data.train.x, taught.train.x)


@pytest.mark.parametrize(("standardize", "low"), [("none", 0.0), ("symmetric", -1.0)])
def test_pixels_fill_the_range_that_is_asked_for(standardize, low):
    x = digits(standardize=standardize).train.x
    assert (x.min(), x.max()) == (low, 1.0)
