"""Setting trees of any depth, with choices: names, overrides, JSON round trips, and errors for mistakes."""

import dataclasses
import json
import re
from typing import Optional, Protocol

import pytest

from ge3d_jax.core.errors import UserError
from ge3d_jax.core.settings import choice, from_tree, kind_of, setting_names, to_tree, with_overrides


class Growth(Protocol):
    """The base of the choices below."""

    every: int


@dataclasses.dataclass(frozen=True)
class Noise:
    scale: float = 0.5
    shape: tuple[float, ...] = (1.0, 2.0)


@dataclasses.dataclass(frozen=True)
class Chain:
    every: int = 10
    noise: Noise = Noise()


@dataclasses.dataclass(frozen=True)
class Split:
    every: int = 100
    first: int = 5
    last: int = 50
    tags: tuple[str, ...] = ()

    def __post_init__(self):
        if self.first > self.last:
            raise UserError(f"The setting first is {self.first}, which comes after last, {self.last}.")


@dataclasses.dataclass(frozen=True)
class Still:
    pass


def growths():
    return {"split": Split, "chain": Chain, "still": Still}


@dataclasses.dataclass(frozen=True)
class Mesh:
    faces: int = 7


@dataclasses.dataclass(frozen=True)
class Splats:
    scale: float = 1.0
    density: Growth = choice(growths, Split(every=20))


@dataclasses.dataclass(frozen=True)
class Camera:
    size: "tuple[int, int]" = (4, 8)
    name: str | None = "front"
    radius: Optional["float"] = None  # noqa: UP045 - older annotations are read too
    sharp: bool = True
    kind: str = "pinhole"


@dataclasses.dataclass(frozen=True)
class Tree:
    steps: int = 3
    prompt: str = "a cat"
    scene: object = choice(lambda: {"splats": Splats, "mesh": Mesh}, Splats(scale=2.0))
    camera: Camera = Camera()

    def __post_init__(self):
        if kind_of(self, "scene") == "mesh" and self.steps < 10:
            raise UserError(f"The setting steps is {self.steps}, but meshes take at least 10.")


def refused(message):
    return pytest.raises(UserError, match="^" + re.escape(message))


def test_names_are_those_of_the_tree_with_the_kinds_first():
    assert setting_names(Tree()) == [
        "steps",
        "prompt",
        "scene.kind",
        "scene.scale",
        "scene.density.kind",
        "scene.density.every",
        "scene.density.first",
        "scene.density.last",
        "scene.density.tags",
        "camera.size",
        "camera.name",
        "camera.radius",
        "camera.sharp",
        "camera.kind",
    ]
    assert setting_names(Splats(density=Still())) == ["scale", "density.kind"]


def test_the_kind_of_a_choice_at_any_depth():
    assert kind_of(Tree(), "scene") == "splats"
    assert kind_of(Tree(), "scene.density") == "split"
    assert kind_of(Splats(density=Chain()), "density") == "chain"
    with pytest.raises(TypeError, match="camera is not a choice"):
        kind_of(Tree(), "camera")
    with pytest.raises(TypeError, match="density holds a Mesh.*split, chain, still"):
        kind_of(Splats(density=Mesh()), "density")


@pytest.mark.parametrize(
    "config",
    [
        Tree(),
        Tree(steps=10, scene=Mesh(faces=3)),
        Tree(prompt="null", scene=Splats(density=Chain(every=1, noise=Noise(scale=4.0, shape=())))),
        Tree(prompt="5", scene=Splats(density=Still()), camera=Camera(name=None, radius=1.5, size=(1, 2))),
        Tree(camera=Camera(name="null"), scene=Splats(density=Split(tags=("a", "b")))),
    ],
)
def test_a_tree_comes_back_from_json(config):
    tree = to_tree(config)
    assert from_tree(Tree(), tree) == config
    back = from_tree(Tree(), json.loads(json.dumps(tree)))
    assert back == config and hash(back) == hash(config)


def test_a_tree_is_plain_dictionaries_with_the_kinds_first():
    tree = to_tree(Tree(steps=12, scene=Splats(density=Chain())))
    assert tree == {
        "steps": 12,
        "prompt": "a cat",
        "scene": {
            "kind": "splats",
            "scale": 1.0,
            "density": {"kind": "chain", "every": 10, "noise": {"scale": 0.5, "shape": (1.0, 2.0)}},
        },
        "camera": {"size": (4, 8), "name": "front", "radius": None, "sharp": True, "kind": "pinhole"},
    }
    assert next(iter(tree["scene"])) == next(iter(tree["scene"]["density"])) == "kind"


def changed(path, value):
    """The default tree with one entry changed, or removed if `value` is Ellipsis."""
    tree = to_tree(Tree())
    *sections, leaf = path.split(".")
    inner = tree
    for section in sections:
        inner = inner[section]
    inner[leaf] = value
    if value is ...:
        del inner[leaf]
    return tree


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "scene.density.evry",
            1,
            "The setting 'scene.density.evry' does not exist; did you mean scene.density.every",
        ),
        ("stesp", 1, "The setting 'stesp' does not exist; did you mean steps?"),
        ("scene.density.last", ..., "The configuration lacks the setting scene.density.last; "),
        ("steps", ..., "The configuration lacks the setting steps; "),
        ("camera", ..., "The configuration lacks the setting camera.size; "),
        ("scene", ..., "The configuration lacks the setting scene.kind; "),
        ("scene.density.kind", ..., "The configuration lacks the setting scene.density.kind; "),
        (
            "scene.density.kind",
            "grow",
            "The setting scene.density.kind is 'grow'; use one of split, chain, still.",
        ),
        ("scene.density.kind", ["split"], "The setting scene.density.kind is ['split']; use one of"),
        ("scene.density.kind", "still", "The setting 'scene.density.every' does not exist; "),
        ("scene.density", 3, "The section scene.density is 3; "),
        ("camera", None, "The section camera is None; "),
        ("camera.size", [1], "The setting camera.size is [1]; give 2 numbers"),
        ("steps", "3", "The setting steps is '3'; give a whole number."),
        ("steps", {"a": 1}, "The setting steps is {'a': 1}; give a whole number."),
        ("scene.density.first", 51, "The setting first is 51, which comes after last, 50."),
    ],
)
def test_a_mistake_in_a_tree_is_named(path, value, message):
    with refused(message):
        from_tree(Tree(), changed(path, value))


def test_a_tree_that_is_none_is_refused():
    with refused("The section configuration is [1]; "):
        from_tree(Tree(), [1])


def test_overrides_at_any_depth():
    config = with_overrides(
        Tree(scene=Splats(density=Chain())),
        {
            "steps": "4",
            "prompt": "5",
            "scene.scale": 3,
            "scene.density.noise.scale": "1.5",
            "scene.density.noise.shape": "[3, 4.5, 6]",
            "camera.size": [2.0, 3],
            "camera.sharp": "false",
            "camera.kind": "fisheye",
        },
    )
    noise = Noise(scale=1.5, shape=(3.0, 4.5, 6.0))
    camera = Camera(size=(2, 3), sharp=False, kind="fisheye")
    scene = Splats(scale=3.0, density=Chain(noise=noise))
    assert config == Tree(steps=4, prompt="5", scene=scene, camera=camera)
    assert type(config.scene.scale) is float and type(config.camera.size[0]) is int
    assert with_overrides(config, {}) == config


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("name", "null", None),
        ("name", None, None),
        ("name", "5", "5"),
        ("name", "[x", "[x"),
        ("radius", "null", None),
        ("radius", "2", 2.0),
        ("radius", 3, 3.0),
    ],
)
def test_settings_that_may_be_none(name, given, value):
    camera = with_overrides(Camera(radius=1.0), {name: given})
    assert getattr(camera, name) == value


def test_a_tuple_of_any_length():
    split = with_overrides(Split(), {"tags": '["a", "b", "c"]'})
    assert split.tags == ("a", "b", "c")
    assert with_overrides(split, {"tags": []}).tags == ()
    with refused("The setting shape is 3; give a list of numbers"):
        with_overrides(Noise(), {"shape": 3})
    with refused("The setting tags is 3; give a list of values"):
        with_overrides(Split(), {"tags": "3"})
    with refused("The setting shape is 'a'; give a number."):
        with_overrides(Noise(), {"shape": [1, "a"]})


@pytest.mark.parametrize("kind_comes_last", [False, True])
def test_another_kind_brings_its_defaults_before_the_other_overrides(kind_comes_last):
    overrides = {"scene.density.kind": "chain", "scene.density.noise.scale": 9}
    if kind_comes_last:
        overrides = dict(reversed(overrides.items()))
    config = with_overrides(Tree(), overrides)
    # 10 rather than the other kind's 20.
    assert config.scene == Splats(scale=2.0, density=Chain(every=10, noise=Noise(scale=9.0)))


def test_the_same_kind_again_changes_nothing():
    assert with_overrides(Tree(), {"scene.kind": "splats", "scene.density.kind": "split"}) == Tree()
    assert with_overrides(Tree(), {"scene.density.kind": "split"}).scene.density.every == 20


def test_an_outer_kind_comes_before_the_inner_one_it_brings():
    mesh = Tree(steps=10, scene=Mesh())
    overrides = {"density.every": 7, "scene.density.kind": "chain", "scene.kind": "splats"}
    assert with_overrides(mesh, overrides).scene == Splats(density=Chain(every=7))


def test_sections_check_themselves_only_once_all_overrides_are_in_place():
    # Each override alone would be rejected.
    config = with_overrides(Tree(), {"scene.kind": "mesh", "steps": 10})
    assert config == Tree(steps=10, scene=Mesh())
    assert with_overrides(Split(), {"first": 60, "last": 70}) == Split(first=60, last=70)
    with refused("The setting steps is 9, but meshes"):
        with_overrides(Tree(), {"scene.kind": "mesh", "steps": 9})
    with refused("The setting first is 60, which comes after"):
        with_overrides(Tree(), {"scene.density.first": 60})


def test_the_end_of_a_name_will_do():
    config = with_overrides(Tree(), {"density.every": 8, "first": 6, "scale": 4, "density.kind": "split"})
    assert config.scene == Splats(scale=4.0, density=Split(every=8, first=6))
    # `steps` names a setting exactly, even though other names end with it.
    twice = dataclasses.make_dataclass(
        "Twice", [("tree", Tree, Tree()), ("steps", int, 1), ("size", int, 1)], frozen=True
    )()
    assert with_overrides(twice, {"steps": 5}) == dataclasses.replace(twice, steps=5)
    assert with_overrides(twice, {"tree.camera.size": [5, 6]}).size == 1


def test_of_two_names_for_a_setting_the_later_counts():
    given = {"scene.density.every": 1, "density.every": 2}
    assert with_overrides(Tree(), given).scene.density.every == 2
    kinds = {"scene.density.kind": "chain", "density.kind": "split"}
    assert with_overrides(Tree(), kinds) == Tree()


def test_an_ambiguous_name_names_the_candidates():
    config = Tree(scene=Splats(density=Chain()))
    with refused(
        "The setting 'scale' could be scene.scale or scene.density.noise.scale; write one of them in full."
    ):
        with_overrides(config, {"scale": 1})
    with refused("The setting 'kind' could be scene.kind or scene.density.kind or camera.kind; "):
        with_overrides(config, {"kind": "chain"})
    assert with_overrides(config, {"noise.scale": 1}).scene.density.noise.scale == 1.0


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "scene.density.evry",
            1,
            "The setting 'scene.density.evry' does not exist; did you mean scene.density.every",
        ),
        ("evry", 1, "The setting 'evry' does not exist; did you mean scene.density.every?"),
        ("very", 1, "The setting 'very' does not exist; did you mean scene.density.every?"),
        ("zzz.qqq", 1, "The setting 'zzz.qqq' does not exist; see the settings' list?"),
        ("", 1, "The setting '' does not exist; "),
        ("scene.density.noise.scale", 1, "The setting 'scene.density.noise.scale' does not exist; "),
        (
            "camera",
            {"sharp": True},
            "The setting 'camera' is a section; give one of its settings, e.g. camera.size.",
        ),
        ("scene", "mesh", "The setting 'scene' is a section; give one of its settings, e.g. scene.kind."),
        ("density", "chain", "The setting 'density' does not exist; "),
        ("scene.kind", "mash", "The setting scene.kind is 'mash'; use one of splats, mesh."),
        ("density.kind", "x", "The setting scene.density.kind is 'x'; use one of split, chain, still."),
        ("scene.kind", None, "The setting scene.kind is None; use one of"),
        ("scene.kind", ["mesh"], "The setting scene.kind is ['mesh']; use one of"),
        ("steps", 2.5, "The setting steps is 2.5; give a whole number."),
        ("steps", True, "The setting steps is True; give a whole number."),
        ("steps", "null", "The setting steps is None; give a whole number."),
        ("steps", "many", "The setting steps is 'many', which cannot be read; "),
        ("steps", "9" * 5000, "The setting steps is '9999"),
        ("camera.size", "[" * 200_000, "The setting camera.size is '[[[["),
        ("prompt", 3, "The setting prompt is 3; give a string."),
        ("prompt", None, "The setting prompt is None; give a string."),
        ("sharp", 1, "The setting camera.sharp is 1; give true or false."),
        ("scene.scale", "NaN", "The setting scene.scale is nan; give a number."),
        ("scene.scale", "-Infinity", "The setting scene.scale is -inf; give a number."),
        ("scene.scale", 10**400, "The setting scene.scale is 1000"),
        ("camera.size", [1, 2, 3], "The setting camera.size is [1, 2, 3]; give 2 numbers as […, …]."),
        ("camera.name", 3, "The setting camera.name is 3; give a string."),
    ],
)
def test_a_mistaken_override_is_named(name, value, message):
    with refused(message):
        with_overrides(Tree(), {name: value})
