"""Weights from local files: what fits, what does not and is said, and that a model stays whole when they do not fit."""

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from fastcv import models
from fastcv.models import WeightsError, load_weights, read_state_dict


def small(**config: object) -> nn.Module:
    return models.resnet8(**({"num_classes": 4, "layers": nn} | config))


@pytest.fixture
def saved(tmp_path: Path) -> tuple[nn.Module, Path]:
    network = small()
    path = tmp_path / "weights.pt"
    torch.save(network.state_dict(), path)
    return network, path


def same(a: nn.Module, b: nn.Module, but: tuple[str, ...] = ()) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(value, theirs[key]) for key, value in a.state_dict().items() if key not in but)


def test_round_trip(saved: tuple[nn.Module, Path]) -> None:
    network, path = saved
    other = small()
    report = load_weights(other, path)
    assert report and same(other, network)
    assert list(report.loaded) == list(network.state_dict())
    assert str(report) == f"{path}: {len(report.loaded)} tensors loaded"
    assert same(models.resnet8(num_classes=4, weights=path), network)
    assert same(models.get_model("resnet8", num_classes=4, weights=str(path)), network)


def test_safetensors(saved: tuple[nn.Module, Path], tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    network, path = saved
    safetensors.save_file(network.state_dict(), tmp_path / "w.safetensors")
    assert same(small(weights=tmp_path / "w.safetensors"), network)
    (tmp_path / "bad.safetensors").write_bytes(path.read_bytes())
    with pytest.raises(WeightsError, match=r"bad\.safetensors' is not a readable safetensors file"):
        small(weights=tmp_path / "bad.safetensors")


@pytest.mark.parametrize("entry", ["model", "state_dict", "model_state_dict"])
def test_checkpoints_and_the_prefix_of_parallel_training(saved: tuple[nn.Module, Path], tmp_path: Path, entry: str) -> None:
    network, _ = saved
    state = {f"module.{key}": value for key, value in network.state_dict().items()}
    torch.save({entry: state, "epoch": 3, "optimizer": {"state": {}}}, tmp_path / "checkpoint.pt")
    assert same(small(weights=tmp_path / "checkpoint.pt"), network)


def test_another_number_of_classes_resets_the_head_only(saved: tuple[nn.Module, Path]) -> None:
    network, path = saved
    other = small(num_classes=9)
    head = other.fc.weight.clone()
    report = load_weights(other, path)
    assert report and [row[0] for row in report.reset] == ["fc.weight", "fc.bias"]
    assert "fc.weight: [4, 64] in the file, [9, 64] in the model" in str(report)
    assert torch.equal(other.fc.weight, head)
    assert same(other, network, ("fc.weight", "fc.bias"))


def test_exact_report_of_what_does_not_fit(saved: tuple[nn.Module, Path], tmp_path: Path) -> None:
    network, _ = saved
    state = network.state_dict()
    del state["layer1.0.conv1.weight"]
    state["layer2.0.conv1.weight"] = torch.zeros(32, 16, 5, 5)
    state["extra.weight"] = torch.zeros(2)
    torch.save(state, tmp_path / "w.pt")
    other = small()
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(WeightsError) as error:
        load_weights(other, tmp_path / "w.pt")
    for line in (
        "the weights do not fit ResNetCifar;",
        "1 missing in the file:\n  layer1.0.conv1.weight",
        "1 unexpected in the file:\n  extra.weight",
        "1 of another shape:\n  layer2.0.conv1.weight: [32, 16, 5, 5] in the file, [32, 16, 3, 3] in the model",
    ):
        assert line in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())  # nothing was copied
    report = load_weights(other, tmp_path / "w.pt", strict=False)
    assert not report
    assert (report.missing, report.unexpected) == (("layer1.0.conv1.weight",), ("extra.weight",))
    assert report.mismatched == (("layer2.0.conv1.weight", (32, 16, 5, 5), (32, 16, 3, 3)),)
    assert same(other, network, ("layer1.0.conv1.weight", "layer2.0.conv1.weight"))


class Surprise:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("/tmp/never"),))


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="there is no weights file"):
        small(weights=tmp_path / "nowhere.pt")
    (tmp_path / "text.pt").write_text("no tensors here")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "code.pt").write_bytes(pickle.dumps(Surprise(), protocol=2))
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"epoch": 3}, tmp_path / "numbers.pt")
    torch.save({0: torch.zeros(2)}, tmp_path / "indices.pt")
    torch.save(small(), tmp_path / "module.pt")
    whole = tmp_path / "whole.pt"
    torch.save(small().state_dict(), whole)
    (tmp_path / "cut.pt").write_bytes(whole.read_bytes()[:5000])
    for name in ("text.pt", "empty.pt", "code.pt", "module.pt", "cut.pt"):
        with pytest.raises(WeightsError, match=rf"{name}' is not a file of tensors that torch.load\(weights_only=True\) reads"):
            read_state_dict(tmp_path / name)
    # The reason in a few words, without torch's advice to run the code in the file.
    with pytest.raises(WeightsError, match=r"reads: Unsupported operand \d+$"):
        read_state_dict(Path(__file__))
    with pytest.raises(WeightsError, match=r"reads: Unsupported global: .* was not an allowed global by default$"):
        read_state_dict(tmp_path / "code.pt")
    for name in ("list.pt", "numbers.pt", "indices.pt"):
        with pytest.raises(WeightsError, match=f"{name}' holds no state_dict"):
            read_state_dict(tmp_path / name)


def test_old_keys_of_densenet(tmp_path: Path) -> None:
    build = lambda: models.densenet121(num_classes=2, layers=nn)  # noqa: E731
    network = build()
    old = {}
    for key, value in network.state_dict().items():
        for n in "12":
            key = key.replace(f".norm{n}.", f".norm.{n}.").replace(f".conv{n}.", f".conv.{n}.") if "denselayer" in key else key
        old[key] = value
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "old.pt")
    other = build()
    assert load_weights(other, tmp_path / "old.pt")
    assert same(other, network)


def test_files_without_the_counters_of_batch_norm(saved: tuple[nn.Module, Path], tmp_path: Path) -> None:
    network, _ = saved
    torch.save({k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}, tmp_path / "old.pt")
    other = small()
    assert load_weights(other, tmp_path / "old.pt")
    assert same(other, network)


def test_heads_of_segmentation_networks_are_reset_at_their_last_layer_only(tmp_path: Path) -> None:
    for name in ("fcn_resnet50", "deeplabv3_resnet50", "deeplabv3plus_resnet50", "upernet_resnet50"):
        with torch.device("meta"):
            states = [models.get_model(name, num_classes=n, aux_loss=True, layers=nn) for n in (3, 5)]
        differing = {k for k, v in states[0].state_dict().items() if v.shape != states[1].state_dict()[k].shape}
        assert len(differing) == 4
        assert all(key.startswith(tuple(f"{head}." for head in states[0].HEAD)) for key in differing)


def test_weights_of_a_backbone(tmp_path: Path) -> None:
    classifier = models.resnet50(num_classes=3, layers=nn)
    torch.save(classifier.state_dict(), tmp_path / "resnet50.pt")
    network = models.fcn_resnet50(weights_backbone=tmp_path / "resnet50.pt", layers=nn)
    state = network.backbone.state_dict()
    assert all(torch.equal(value, classifier.state_dict()[key]) for key, value in state.items())
    with pytest.raises(ValueError, match="resnet8 has no backbone to load"):
        small(weights_backbone=tmp_path / "resnet50.pt")


def test_auxiliary_weights_are_optional(tmp_path: Path) -> None:
    network = models.fcn_resnet50(aux_loss=True, num_classes=3, layers=nn)
    torch.save(network.state_dict(), tmp_path / "fcn.pt")
    without = models.fcn_resnet50(num_classes=3, layers=nn)
    report = load_weights(without, tmp_path / "fcn.pt")
    assert {key.split(".")[0] for key in report.unexpected} == {"aux_classifier"}
    assert same(without, network)
    torch.save(without.state_dict(), tmp_path / "plain.pt")
    with pytest.raises(WeightsError, match=r"missing in the file:\n  aux_classifier.0.weight"):
        load_weights(network, tmp_path / "plain.pt")
