"""All readers, by name."""

from tests.fuzz_readers.additions import Embeddings, Loras
from tests.fuzz_readers.attempts import Target
from tests.fuzz_readers.models import ClipFiles, Flax, Models, SingleFiles, Tokenizers, TorchFiles
from tests.fuzz_readers.pictures import CameraPaths, Pictures, Transforms
from tests.fuzz_readers.requests import Lists, Runs
from tests.fuzz_readers.starts import Clouds, Meshes, PointE

READERS: dict[str, type[Target]] = {
    "run": Runs,
    "list": Lists,
    "transforms": Transforms,
    "camera_path": CameraPaths,
    "picture": Pictures,
    "cloud": Clouds,
    "mesh": Meshes,
    "model": Models,
    "tokenizer": Tokenizers,
    "lora": Loras,
    "embedding": Embeddings,
    "flax": Flax,
    "single_file": SingleFiles,
    "torch": TorchFiles,
    "clip": ClipFiles,
    "point_e": PointE,
}
