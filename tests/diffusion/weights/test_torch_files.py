import zipfile

import ml_dtypes
import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.diffusion.weights.torch_files import open_torch_tensors
from tests import torch_archives as archives

ARRAYS = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "a.bias": np.array([0.5, -2.0], np.float16),
    "steps": np.array([2**40], np.int64),
    "half": np.array([[1.5, 3.0]], ml_dtypes.bfloat16),
    "empty": np.zeros((0, 3), np.float32),
}


def read(file, **options):
    return {name: tensor.read() for name, tensor in open_torch_tensors(file, **options).items()}


def refusal(file, **options):
    with pytest.raises(UserError) as caught:
        read(file, **options)
    message = str(caught.value)
    assert file.name in message and "\n" not in message
    return message


@pytest.mark.parametrize("wrap", [None, "model_state_dict"])
def test_tensors_come_back_as_they_were(tmp_path, wrap):
    found = read(archives.save_arrays(tmp_path / "model.pt", ARRAYS, wrap=wrap), inside="model_state_dict")
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


def test_numbers_of_every_type_come_back(tmp_path):
    types = ("int64", "int32", "int16", "int8", "uint8")
    arrays = {name: np.array([np.iinfo(name).min, np.iinfo(name).max], name) for name in types}
    arrays |= {"float64": np.array([1 / 3]), "bool": np.array([True, False, True])}
    found = read(archives.save_arrays(tmp_path / "types.pt", arrays))
    for name, array in arrays.items():
        assert found[name].dtype == name and found[name].tolist() == array.tolist()


def test_opcodes_of_short_tuples_single_items_and_repeated_objects(tmp_path):
    def shortened(shape, strides):
        opcodes = archives.tensor("0", "float32", 6, shape, strides)
        for values in (shape, strides):
            ending = bytes([0x84 + len(values)])
            opcodes = opcodes.replace(
                archives.numbers(values), b"".join(map(archives.number, values)) + ending
            )
        return opcodes

    data = np.arange(6, dtype=np.float32)
    tensors = {
        "one": shortened((6,), (1,)),
        "two": shortened((2, 3), (3, 1)),
        "three": shortened((1, 2, 3), (6, 3, 1)) + b"q\x07",
        "tied": b"h\x07",
    }
    items = b"}" + b"".join(archives.text(name) + opcodes + b"s" for name, opcodes in tensors.items())
    found = read(archives.write(tmp_path / "short.pt", items, {"0": data.tobytes()}))
    shapes = {"one": (6,), "two": (2, 3), "three": (1, 2, 3), "tied": (1, 2, 3)}
    assert list(found) == list(shapes)
    for name, shape in shapes.items():
        np.testing.assert_array_equal(found[name], data.reshape(shape))


def test_views_of_one_storage_and_parameters(tmp_path):
    data = np.arange(8, dtype=np.float32)
    whole = archives.tensor("0", "float32", 8, (2, 3), strides=(1, 2), offset=1)
    parameter = archives.call("torch._utils", "_rebuild_parameter", b"(" + whole + b"\x88Nt")
    items = archives.mapping({"turned": whole, "parameter": parameter})
    found = read(archives.write(tmp_path / "views.pt", items, {"0": data.tobytes()}))
    assert found["turned"].tolist() == [[1, 3, 5], [2, 4, 6]]
    assert found["parameter"].tolist() == found["turned"].tolist()


def test_files_of_older_versions_come_back_as_they_were(tmp_path):
    found = read(archives.save_older_arrays(tmp_path / "model.pth", ARRAYS))
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()
    rows = open_torch_tensors(tmp_path / "model.pth")["a.weight"].take_rows(1, 3).read()
    assert rows.tolist() == ARRAYS["a.weight"][1:].tolist()


ONE = archives.mapping({"w": archives.tensor("7", "float32", 2, (2,), older=True)})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"magic": 3}, "does not begin"),
        ({"version": 1002}, "does not begin"),
        ({"little": False}, "big-endian"),
        ({"keys": {"7": 1}}, "no list of its storages"),
        ({"keys": ["8"]}, "no tensor uses its storage '8'"),
        ({"keys": []}, "storage '7' is missing"),
        ({"storages": {"7": (3, bytes(12))}}, "of another length"),
        ({"storages": {"7": (2, bytes(7))}}, "storage '7' is missing or too short"),
        ({"content": archives.call("os", "system", b"(" + archives.text("touch ran") + b"t")}, "os.system"),
    ],
)
def test_damaged_files_of_older_versions_are_refused(tmp_path, monkeypatch, changes, named):
    monkeypatch.chdir(tmp_path)
    whole = {"content": ONE, "storages": {"7": (2, np.float32([4, 5]).tobytes())}}
    assert read(archives.write_older(tmp_path / "whole.pth", **whole))["w"].tolist() == [4, 5]
    assert named in refusal(archives.write_older(tmp_path / "model.pth", **{**whole, **changes}))
    assert not (tmp_path / "ran").exists()


def test_names_and_versions_of_an_ordered_dictionary(tmp_path):
    one = archives.tensor("0", "float32", 1, (1,))
    ordered = archives.name("collections", "OrderedDict") + b")R(" + archives.text("w") + one + b"u"
    metadata = archives.mapping({"_metadata": archives.mapping({})})
    content = ordered + metadata + b"b"
    file = archives.write(tmp_path / "ordered.pt", content, {"0": np.float32(7).tobytes()})
    assert read(file)["w"].tolist() == [7]


def module(**attributes):
    """The opcodes of a module of TorchScript."""
    return archives.name("__torch__.net", "Net") + b")\x81" + archives.mapping(attributes) + b"b"


def test_modules_of_torchscript_are_their_tensors(tmp_path):
    one, two = (archives.tensor(str(place), "float32", 2, (2,)) for place in range(2))
    content = module(width=archives.number(3), inner=module(weight=one, training=b"\x89"), bias=two)
    members = {"0": np.float32([1, 2]).tobytes(), "1": np.float32([3, 4]).tobytes()}
    file = archives.write(tmp_path / "traced.pt", content, members)
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/code/__torch__.py", "raise SystemExit" * 9)
    found = read(file)
    assert {name: list(value) for name, value in found.items()} == {"inner.weight": [1, 2], "bias": [3, 4]}


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (archives.call("os", "system", b"(" + archives.text("touch ran") + b"t"), "os.system"),
        (archives.call("builtins", "eval", b"(" + archives.text("1/0") + b"t"), "builtins.eval"),
        (archives.call("torch._utils", "_rebuild_sparse_tensor", b")"), "_rebuild_sparse_tensor"),
        (archives.call("collections", "OrderedDict", b"(K\x01t"), "OrderedDict"),
        (archives.text("a text") + b")R", "a text"),
        (b"\x8c\x02os\x8c\x06system\x93", "SHORT_BINUNICODE"),
        (b"cos\nsystem\n)\x81", "it makes a 'os.system'"),
        (archives.name("__torch__", "Net") + b"(K\x01t\x81", "it makes a '__torch__.Net'"),
        (archives.name("__torch__", "Net") + b")\x81K\x01b", "no attributes by name"),
        (archives.name("__torch__", "Net") + b")\x81", "no tensors"),
        (b"(ios\nsystem\n", "INST"),
        (archives.mapping({"w": archives.number(3)}), "'w' is not a tensor"),
        (archives.mapping({}), "no tensors"),
        (archives.text("hello"), "no tensors"),
        (archives.mapping({"w": archives.tensor("0", "float32", 4, (5,))}), "longer than its storage"),
        (archives.mapping({"w": archives.tensor("0", "float32", 4, (2,), strides=(4,))}), "longer than"),
        (archives.mapping({"w": archives.tensor("0", "float32", 4, (5,), strides=(0,))}), "longer than"),
        (archives.mapping({"w": archives.tensor("0", "float32", 4, (-1,))}), "no valid shape"),
        (archives.mapping({"w": archives.tensor("0", "float32", 4, (2,), offset=-1)}), "no valid shape"),
        (archives.mapping({"w": archives.tensor("0", "float32", 5, (5,))}), "missing or too short"),
        (archives.mapping({"w": archives.tensor("1", "float32", 4, (4,))}), "missing or too short"),
        (b"0", "POP"),
        (b"a", "reads what is not there"),
        (b"u", "reads what is not there"),
        (b"h\x05", "reads what is not there"),
    ],
)
def test_whatever_is_not_a_tensor_is_refused_by_name_and_not_run(tmp_path, monkeypatch, content, named):
    monkeypatch.chdir(tmp_path)
    file = archives.write(tmp_path / "hostile.pt", content, {"0": bytes(16)})
    assert named in refusal(file)
    assert not (tmp_path / "ran").exists()


def test_other_archives_are_refused(tmp_path):
    file = tmp_path / "model.pt"
    assert "missing" in refusal(file)
    file.write_bytes(b"\x80\x02}q\x00.")
    assert "not a readable PyTorch file" in refusal(file)
    archives.save_arrays(file, ARRAYS, compression=zipfile.ZIP_DEFLATED)
    assert "compressed" in refusal(file)
    archives.save_arrays(file, ARRAYS, byteorder=b"big")
    assert "big-endian" in refusal(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/other.pkl", b"")
    assert "no data.pkl" in refusal(file)
    archives.save_arrays(file, ARRAYS)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("another/data.pkl", b"\x80\x02}.")
    # Which of the two is meant is anyone's guess.
    assert "data.pkl" in refusal(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", bytes(2**26 + 1))
    assert "far too long" in refusal(file)


def test_damaged_files_give_one_sentence_or_the_tensors(tmp_path):
    whole = archives.save_arrays(tmp_path / "whole.pt", ARRAYS, wrap="model_state_dict").read_bytes()
    older = archives.save_older_arrays(tmp_path / "older.pt", ARRAYS).read_bytes()
    rng, file, refused = np.random.default_rng(0), tmp_path / "model.pt", 0
    for case in range(400):
        data = bytearray(whole if case < 200 else older)
        if case % 4 == 0:
            del data[int(rng.integers(len(data))) :]
        else:
            for place in rng.integers(len(data), size=1 + case % 3):
                data[place] = rng.integers(256)
        file.write_bytes(data)
        try:
            read(file, inside="model_state_dict")
        except UserError as error:
            refused += 1
            assert file.name in str(error) and "\n" not in str(error)
    assert refused > 200
