"""Splats in glTF: the written files, and files of other writers, taken apart and reassembled here."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.formats.axes import turned
from ge3d_jax.formats.glb import read_glb, save_glb
from ge3d_jax.formats.splat_arrays import live_arrays
from tests.formats.splat_files import random_gaussians, with_values

PREFIX = "KHR_gaussian_splatting:"


def taken_apart(data: bytes) -> tuple[dict, bytes]:
    (size,) = struct.unpack_from("<I", data, 12)
    return json.loads(data[20 : 20 + size]), data[28 + size :]


def put_together(content: dict, numbers: bytes) -> bytes:
    text = json.dumps(content).encode()
    text += b" " * (-len(text) % 4)
    head = struct.pack("<4sII", b"glTF", 2, 28 + len(text) + len(numbers))
    return (
        head
        + struct.pack("<I4s", len(text), b"JSON")
        + text
        + struct.pack("<I4s", len(numbers), b"BIN\0")
        + numbers
    )


def written(tmp_path, count=5, degree=1, dead=0):
    gaussians = random_gaussians(count, degree, dead=dead)
    save_glb(tmp_path / "a.glb", gaussians)
    return live_arrays(gaussians), *taken_apart((tmp_path / "a.glb").read_bytes())


def read_back(tmp_path, content, numbers):
    (tmp_path / "b.glb").write_bytes(put_together(content, numbers))
    return live_arrays(read_glb(tmp_path / "b.glb").gaussians)


def assert_same(found, wanted):
    for name, values in vars(wanted).items():
        # Logits of opacities near 1 that are rounded to float32 are less accurate.
        margin = 3e-5 if name == "opacity_logits" else 2e-6
        np.testing.assert_allclose(getattr(found, name), values, atol=margin, err_msg=name)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_splats_come_back(tmp_path, degree):
    wanted, content, numbers = written(tmp_path, 7, degree, dead=2)
    assert len(wanted.positions) == 5
    assert_same(live_arrays(read_glb(tmp_path / "a.glb").gaussians), wanted)
    assert_same(read_back(tmp_path, content, numbers), wanted)


def test_the_file_is_as_the_extension_says(tmp_path):
    wanted, content, numbers = written(tmp_path)
    data = (tmp_path / "a.glb").read_bytes()
    assert struct.unpack_from("<4sII", data) == (b"glTF", 2, len(data)) and len(data) % 4 == 0
    assert content["extensionsUsed"] == ["KHR_gaussian_splatting"]
    assert content["buffers"] == [{"byteLength": len(numbers)}]
    primitive = content["meshes"][0]["primitives"][0]
    assert primitive["mode"] == 0
    assert primitive["extensions"]["KHR_gaussian_splatting"]["kernel"] == "ellipse"
    assert primitive["extensions"]["KHR_gaussian_splatting"]["colorSpace"] == "srgb_rec709_display"

    def values(name):
        accessor = content["accessors"][primitive["attributes"][name]]
        kind = {5126: "<f4", 5121: "u1"}[accessor["componentType"]]
        view = content["bufferViews"][accessor["bufferView"]]
        return np.frombuffer(numbers, kind, view["byteLength"] // np.dtype(kind).itemsize, view["byteOffset"])

    first = wanted.quaternions[0]
    np.testing.assert_allclose(values(f"{PREFIX}ROTATION")[:4], first[[1, 2, 3, 0]], rtol=1e-6)
    np.testing.assert_allclose(values(f"{PREFIX}SCALE")[:3], np.exp(wanted.log_scales[0]), rtol=1e-6)
    np.testing.assert_allclose(
        values(f"{PREFIX}OPACITY"), 1 / (1 + np.exp(-wanted.opacity_logits)), rtol=1e-5
    )
    np.testing.assert_array_equal(values(f"{PREFIX}SH_DEGREE_1_COEF_2")[3:6], wanted.sh[1, 3])
    color = np.clip(0.5 + 0.28209479 * wanted.sh[2, 0], 0, 1)
    # Linear light, as glTF has it.
    light = np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)
    np.testing.assert_allclose(values("COLOR_0")[8:11], 255 * light, atol=0.51)
    bounds = content["accessors"][primitive["attributes"]["POSITION"]]
    np.testing.assert_allclose(bounds["min"], wanted.positions.min(axis=0))
    np.testing.assert_allclose(bounds["max"], wanted.positions.max(axis=0))


def test_the_same_splats_give_the_same_bytes(tmp_path):
    written(tmp_path)
    before = (tmp_path / "a.glb").read_bytes()
    written(tmp_path)
    assert (tmp_path / "a.glb").read_bytes() == before


def test_integers_and_strides_are_read(tmp_path):
    """Rotations as normalized bytes and opacities as normalized 16-bit integers, interleaved."""
    wanted, content, numbers = written(tmp_path)
    primitive = content["meshes"][0]["primitives"][0]
    alphas = np.rint(65535 / (1 + np.exp(-wanted.opacity_logits))).astype("<u2")
    turns = np.rint(127 * wanted.quaternions[:, [1, 2, 3, 0]]).astype("i1")
    # -128 is the same as -127.
    turns[0] = -128, 0, 0, 0
    mixed = np.zeros((5, 8), np.uint8)
    mixed[:, :4], mixed[:, 4:6] = turns.view("u1"), alphas[:, None].view("u1")
    content["bufferViews"].append(
        {"buffer": 0, "byteOffset": len(numbers), "byteLength": mixed.size, "byteStride": 8}
    )
    for name, component, place in (("ROTATION", 5120, 0), ("OPACITY", 5123, 4)):
        accessor = content["accessors"][primitive["attributes"][PREFIX + name]]
        accessor |= {"bufferView": len(content["bufferViews"]) - 1, "byteOffset": place}
        accessor |= {"componentType": component, "normalized": True}
    found = read_back(tmp_path, content, numbers + mixed.tobytes())
    np.testing.assert_array_equal(found.quaternions[0], [0, -1, 0, 0])
    np.testing.assert_allclose(found.quaternions[1:], wanted.quaternions[1:], atol=0.51 / 127)
    opacities = [1 / (1 + np.exp(-each.opacity_logits)) for each in (found, wanted)]
    np.testing.assert_allclose(*opacities, atol=0.51 / 65535 + 1e-6)
    np.testing.assert_array_equal(found.positions, wanted.positions)


def test_integers_that_are_not_normalized_are_whole_numbers(tmp_path: Path) -> None:
    _, content, numbers = written(tmp_path)
    places = np.random.default_rng(0).integers(-1000, 1000, (5, 4)).astype("<i2")
    content["bufferViews"].append(
        {"buffer": 0, "byteOffset": len(numbers), "byteLength": places.nbytes, "byteStride": 8}
    )
    content["accessors"][0] |= {"bufferView": len(content["bufferViews"]) - 1, "componentType": 5122}
    found = read_back(tmp_path, content, numbers + places.tobytes())
    np.testing.assert_array_equal(found.positions, places[:, :3])


def test_without_scenes_parents_move_their_children(tmp_path):
    wanted, content, numbers = written(tmp_path)
    content["nodes"] = [
        {"translation": [0, 0, 1], "mesh": 0},
        {"translation": [10, 0, 0], "children": [0]},
    ]
    plain = read_back(tmp_path, content | {"nodes": [{"mesh": 0}]}, numbers)
    del content["scenes"], content["scene"]
    moved = read_back(tmp_path, content, numbers)
    np.testing.assert_allclose(moved.positions - plain.positions, np.tile([10, 0, 1], (5, 1)), atol=1e-5)


def test_nodes_move_their_splats(tmp_path):
    wanted, content, numbers = written(tmp_path)
    turn = (0.8, 0.0, 0.6, 0.0)
    content["nodes"] = [
        {"translation": [1, 2, 3], "scale": [2, 2, 2], "children": [1, 2]},
        {"rotation": [0.0, 0.6, 0.0, 0.8], "mesh": 0},
        # Column-major: a quarter turn about z, a scale of two, and a translation.
        {"matrix": [0, 2, 0, 0, -2, 0, 0, 0, 0, 0, 2, 0, 5, 0, 0, 1], "mesh": 0},
    ]
    content["scenes"] = [{"nodes": []}, {"nodes": [0]}]
    content["scene"] = 1
    found = read_back(tmp_path, content, numbers)
    assert len(found.positions) == 10
    first = turned(wanted, turn)
    np.testing.assert_allclose(found.positions[:5], 2 * first.positions + [1, 2, 3], atol=1e-5)
    np.testing.assert_allclose(found.log_scales[:5], wanted.log_scales + np.log(2), atol=1e-6)
    np.testing.assert_allclose(found.sh[:5], first.sh, atol=1e-5)
    x, y, z = wanted.positions.T
    second = 2 * (np.stack([-2 * y + 5, 2 * x, 2 * z], axis=1)) + [1, 2, 3]
    np.testing.assert_allclose(found.positions[5:], second, atol=1e-4)
    np.testing.assert_allclose(found.log_scales[5:], wanted.log_scales + np.log(4), atol=1e-6)


def test_meshes_of_several_degrees_are_joined(tmp_path):
    wanted, content, numbers = written(tmp_path)
    lower = json.loads(json.dumps(content["meshes"][0]["primitives"][0]))
    for number in range(3):
        del lower["attributes"][f"{PREFIX}SH_DEGREE_1_COEF_{number}"]
    content["meshes"][0]["primitives"] += [lower, {"attributes": {"POSITION": 0}}]
    found = read_back(tmp_path, content, numbers)
    assert found.sh.shape == (10, 4, 3)
    np.testing.assert_array_equal(found.sh[:5], wanted.sh)
    np.testing.assert_array_equal(found.sh[5:, 0], wanted.sh[:, 0])
    assert not found.sh[5:, 1:].any()


def without(content, name):
    del content["meshes"][0]["primitives"][0]["attributes"][name]


CHANGES = {
    "holds no splats": lambda c: c["meshes"][0]["primitives"][0].pop("extensions"),
    "ROTATION' is not a whole number": lambda c: without(c, f"{PREFIX}ROTATION"),
    "COEF_1' is not a whole number": lambda c: without(c, f"{PREFIX}SH_DEGREE_1_COEF_1"),
    "5 positions but 4 of SCALE": lambda c: c["accessors"][3].update(count=4),
    "claims 6 records": lambda c: c["accessors"][3].update(count=6),
    "claims 5 records": lambda c: c["accessors"][2].update(byteOffset=4),
    "is 'VEC3' of component type": lambda c: c["accessors"][2].update(type="VEC3"),
    "component type 5125": lambda c: c["accessors"][3].update(componentType=5125),
    "is sparse": lambda c: c["accessors"][3].update(sparse={}),
    "in another file or compressed": lambda c: c["buffers"][0].update(uri="a.bin"),
    "stretches or mirrors": lambda c: c["nodes"][0].update(scale=[1, 1, -1]),
    "node that stretches": lambda c: c["nodes"][0].update(scale=[1, 1, 2]),
    "is blended differently; export it as srgb_rec709_display": lambda c: c["meshes"][0]["primitives"][0][
        "extensions"
    ]["KHR_gaussian_splatting"].update(colorSpace="lin_rec709_display"),
    "children' is not a list of whole numbers below 1;": lambda c: c["nodes"][0].update(children=[1]),
    "in two places": lambda c: c["nodes"][0].update(children=[0]),
    "'nodes' is not a list of objects": lambda c: c.update(nodes=[1]),
    "repeats a mesh": lambda c: c.update(nodes=[{"mesh": 0}] * 999, scenes=[{"nodes": list(range(999))}]),
    "'scene' is not a whole number from 0 to 0": lambda c: c.update(scene=1),
    "finite numbers": lambda c: c["nodes"][0].update(translation=[0, 0, 10**400]),
}


@pytest.mark.parametrize("says", CHANGES)
def test_what_cannot_be_used_is_named(tmp_path, says):
    _, content, numbers = written(tmp_path)
    CHANGES[says](content)
    with pytest.raises(UserError, match=says):
        read_back(tmp_path, content, numbers)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"ply\n" * 9, "does not start with 'glTF'"),
        (struct.pack("<4sIIII", b"glTF", 1, 20, 0, 0), "version 1"),
        (struct.pack("<4sIII4s", b"glTF", 2, 20, 2**31, b"JSON"), "truncated: a part claims 2147483648"),
        (struct.pack("<4sIII4s", b"glTF", 2, 20, 0, b"BIN\0"), "no description"),
        (struct.pack("<4sIII4s", b"glTF", 2, 20, 2, b"JSON") + b"[]", "is not an object"),
        (struct.pack("<4sIII4s", b"glTF", 2, 20, 2, b"JSON") + b"{'", "is not JSON"),
    ],
)
def test_other_files_are_refused(tmp_path, data, says):
    (tmp_path / "b.glb").write_bytes(data)
    with pytest.raises(UserError, match=says):
        read_glb(tmp_path / "b.glb")


def test_what_the_format_cannot_hold_is_named(tmp_path):
    gaussians = random_gaussians(3, 0)
    with pytest.raises(UserError, match="scale of splat 1, which overflows"):
        save_glb(tmp_path / "a.glb", with_values(gaussians, "log_scales", (1, 0), 200.0))
    with pytest.raises(UserError, match="splat 2, whose positions are not finite"):
        save_glb(tmp_path / "a.glb", with_values(gaussians, "positions", (2, 0), np.inf))
    assert not list(tmp_path.iterdir())
