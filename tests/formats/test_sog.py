"""SOG: the written files, and archives damaged in every part."""

import io
import json
import warnings
import zipfile

import numpy as np
import pytest
from PIL import Image

from ge3d_jax.core.errors import UserError
from ge3d_jax.formats.sog import read_sog, save_sog
from ge3d_jax.formats.splat_arrays import live_arrays
from tests.formats.splat_files import random_gaussians, with_values


def files_of(path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path, files, kind=zipfile.ZIP_STORED):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(path, "w", kind) as archive:
            for name, data in files.items():
                archive.writestr(name, data)


def pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode in ("RGB", "RGBA")
        return np.asarray(image.convert("RGBA")).reshape(-1, 4)


def webp(values: np.ndarray) -> bytes:
    packed = io.BytesIO()
    Image.fromarray(values).save(packed, "WEBP", lossless=True, exact=True)
    return packed.getvalue()


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("count", [1, 17, 300])
def test_splats_come_back_within_the_steps(tmp_path, degree, count):
    gaussians = random_gaussians(count + 2, degree, dead=2)
    order = save_sog(tmp_path / "a.sog", gaussians)
    assert sorted(order) == list(range(count))
    wanted = {name: values[order] for name, values in vars(live_arrays(gaussians)).items()}
    read = live_arrays(read_sog(tmp_path / "a.sog").gaussians)
    # To the nearest of 65536 steps of the logarithm.
    found, given = (
        np.sign(places) * np.log1p(np.abs(places)) for places in (read.positions, wanted["positions"])
    )
    assert (np.abs(found - given).max(axis=0) <= 0.5 * np.ptp(given, axis=0) / 65535 + 1e-6).all()
    np.testing.assert_allclose(
        read.log_scales, wanted["log_scales"], atol=1e-6 + np.ptp(wanted["log_scales"]) / 256
    )
    dots = np.abs((read.quaternions * wanted["quaternions"]).sum(axis=1))
    np.testing.assert_allclose(np.linalg.norm(read.quaternions, axis=1), 1.0, atol=1e-6)
    # Three components have errors of at most 1/255/√2 each, and the fourth as much as all of them.
    assert 2 * np.arccos(np.minimum(dots, 1)).max() < 4 * np.sqrt(3) / 255 / np.sqrt(2)
    opacities = [1 / (1 + np.exp(-each)) for each in (read.opacity_logits, wanted["opacity_logits"])]
    np.testing.assert_allclose(*opacities, atol=0.5 / 255 + 1e-6)
    for part in (np.s_[:, :1], np.s_[:, 1:]):
        step = np.ptp(wanted["sh"][part]) / 256 if wanted["sh"][part].size else 0.0
        np.testing.assert_allclose(read.sh[part], wanted["sh"][part], atol=1e-6 + step)


def test_the_files_are_as_the_format_says(tmp_path):
    gaussians = random_gaussians(70, 2)
    order = save_sog(tmp_path / "a.sog", gaussians, antialiased=True)
    files = files_of(tmp_path / "a.sog")
    meta = json.loads(files["meta.json"])
    assert meta["version"] == 2 and meta["count"] == 70 and meta["antialias"] is True
    assert meta["shN"]["bands"] == 2 and meta["shN"]["count"] == 70
    first = order[0]
    low, high = (pixels(files[name])[0, :3].astype(int) for name in meta["means"]["files"])
    least, most = (np.array(meta["means"][name]) for name in ("mins", "maxs"))
    place = least + (most - least) * (low + 256 * high) / 65535
    np.testing.assert_allclose(
        np.sign(place) * (np.exp(np.abs(place)) - 1), gaussians.positions[first], atol=1e-4
    )
    quaternion = np.array(gaussians.quaternions[first], float)
    largest = np.abs(quaternion).argmax()
    packed = pixels(files["quats.webp"])[0]
    assert packed[3] == 252 + largest
    rest = np.delete(quaternion * np.sign(quaternion[largest]), largest)
    np.testing.assert_allclose(packed[:3] / 255 * 2 - 1, rest * np.sqrt(2), atol=1 / 255 + 1e-6)
    book = np.array(meta["scales"]["codebook"])
    assert len(book) == 256
    scales = book[pixels(files["scales.webp"])[0, :3]]
    np.testing.assert_allclose(scales, gaussians.log_scales[first], atol=0.02)
    label = pixels(files["shN_labels.webp"])[0].astype(int)
    row = label[0] + 256 * label[1]
    with Image.open(io.BytesIO(files["shN_centroids.webp"])) as image:
        assert image.size == (64 * 8, 2)
    table = pixels(files["shN_centroids.webp"])[8 * row : 8 * row + 8, :3]
    np.testing.assert_allclose(np.array(meta["shN"]["codebook"])[table], gaussians.sh[first, 1:], atol=0.02)


def test_the_mark_of_antialiasing_is_kept(tmp_path):
    for mark in (True, False):
        save_sog(tmp_path / "a.sog", random_gaussians(3, 0), antialiased=mark)
        assert read_sog(tmp_path / "a.sog").antialiased is mark


def test_the_same_splats_give_the_same_bytes(tmp_path):
    for name in ("a.sog", "b.sog"):
        save_sog(tmp_path / name, random_gaussians(50, 1))
    assert (tmp_path / "a.sog").read_bytes() == (tmp_path / "b.sog").read_bytes()


def test_deflated_and_unpacked_files_are_read(tmp_path):
    save_sog(tmp_path / "a.sog", random_gaussians(50, 1))
    files = files_of(tmp_path / "a.sog")
    write(tmp_path / "b.sog", files, zipfile.ZIP_DEFLATED)
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    wanted = live_arrays(read_sog(tmp_path / "a.sog").gaussians)
    for name in ("b.sog", "meta.json"):
        found = live_arrays(read_sog(tmp_path / name).gaussians)
        for field, values in vars(wanted).items():
            np.testing.assert_array_equal(getattr(found, field), values)


def test_flat_and_single_splats_keep_their_place(tmp_path):
    """A coordinate without extent is stored at its minimum."""
    gaussians = with_values(random_gaussians(4, 0), "positions", np.s_[:, 1], 3.5)
    order = save_sog(tmp_path / "a.sog", gaussians)
    read = read_sog(tmp_path / "a.sog").gaussians
    np.testing.assert_allclose(read.positions, gaussians.positions[order], atol=1e-4)
    np.testing.assert_allclose(read.positions[:, 1], 3.5, atol=1e-6)


def meta_with(**changes):
    def change(files):
        meta = json.loads(files["meta.json"])
        for name, value in changes.items():
            part, _, key = name.partition("__")
            if key:
                meta[part][key] = value
            else:
                meta[part] = value
        files["meta.json"] = json.dumps(meta).encode()

    return change


def huge_header(files):
    """A picture of a few bytes that claims the maximum size."""
    data = bytearray(files["scales.webp"])
    data[21:25] = (0x3FFF | 0x3FFF << 14 | 1 << 28).to_bytes(4, "little")
    files["scales.webp"] = bytes(data)


CHANGES = {
    "of SOG version 1;": lambda files: files.update({"meta.json": b"{}"}),
    "of SOG version 3;": meta_with(version=3),
    "is not JSON": lambda files: files.update({"meta.json": b"{"}),
    "'count' is not a whole number": meta_with(count=-1),
    "holds no splats": meta_with(count=0),
    "claims 100000000 splats, far more": meta_with(count=10**8),
    "has 400 pixels for 401 splats": meta_with(count=401),
    "'quats.webp' is missing": lambda files: files.pop("quats.webp"),
    "'meta.json' is missing": lambda files: files.pop("meta.json"),
    "'sh0.webp' is not a WebP picture": lambda files: files.update({"sh0.webp": b"\x89PNG" + bytes(40)}),
    "'sh0.webp' cannot be decoded": lambda files: files.update({"sh0.webp": files["sh0.webp"][:60]}),
    "claims 16384 × 16384 pixels": huge_header,
    "'means.mins' is not a list of 3": meta_with(means__mins=[0, 1]),
    "'scales.codebook' is not a list of finite": meta_with(scales__codebook=[float("nan")]),
    "'shN.bands' is not a whole number from 1 to 3": meta_with(shN__bands=4),
    "of a palette of 10;": meta_with(shN__count=10),
    "has row 389 of a palette of 389;": meta_with(shN__count=389),
    "palette has .* pixels for 65536 rows": meta_with(shN__count=65536),
    "'means.files' is not a list of 2": meta_with(means__files=["means_l.webp"]),
}


@pytest.mark.parametrize("says", CHANGES)
def test_damage_is_named(tmp_path, says):
    save_sog(tmp_path / "a.sog", random_gaussians(390, 1))
    files = files_of(tmp_path / "a.sog")
    CHANGES[says](files)
    write(tmp_path / "b.sog", files)
    with pytest.raises(UserError, match=says):
        read_sog(tmp_path / "b.sog")


def test_a_bomb_is_not_unpacked(tmp_path):
    save_sog(tmp_path / "a.sog", random_gaussians(9, 0))
    files = files_of(tmp_path / "a.sog") | {"quats.webp": bytes(2**26)}
    write(tmp_path / "b.sog", files, zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="'quats.webp' is missing or cannot be unpacked"):
        read_sog(tmp_path / "b.sog")


def test_unpacked_files_stay_in_their_folder(tmp_path):
    (tmp_path / "in").mkdir()
    save_sog(tmp_path / "a.sog", random_gaussians(9, 0))
    files = files_of(tmp_path / "a.sog")
    (tmp_path / "quats.webp").write_bytes(files["quats.webp"])
    meta_with(quats__files=["../quats.webp"])(files)
    for name, data in files.items():
        (tmp_path / "in" / name).write_bytes(data)
    with pytest.raises(UserError, match="is not the name of a file beside it"):
        read_sog(tmp_path / "in" / "meta.json")


def test_no_archive_and_no_splats_are_refused(tmp_path):
    (tmp_path / "a.sog").write_bytes(b"PK" + bytes(40))
    with pytest.raises(UserError, match="is not a zip archive"):
        read_sog(tmp_path / "a.sog")
    with pytest.raises(UserError, match="cannot hold 0 splats"):
        save_sog(tmp_path / "b.sog", random_gaussians(2, 0, dead=2))
