"""Networks from the configuration, without a hub, and encoder weights from a file."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from damage import Harm

from pneumo_dist.config.model import ModelConfig
from pneumo_dist.network.build import build_model, encoder_state, freeze_encoder, split_outputs
from shards.errors import InputError, InputErrors

TINY = {"arch": "unet", "encoder": "resnet18", "in_channels": 1, "decoder_channels": (16, 16, 8, 8, 8)}


def config_of(**values: Any) -> ModelConfig:
    return ModelConfig.model_validate({**TINY, **values})


def model_of(**values: Any) -> torch.nn.Module:
    return build_model(config_of(**values), pretrained=False)


def copies(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[bool]:
    assert list(one) == list(other)
    return [torch.equal(one[name], other[name]) for name in one]


@pytest.mark.parametrize("channels", [1, 3])
def test_network_maps_films_to_one_map_of_logits(channels: int) -> None:
    model = model_of(in_channels=channels).eval()
    with torch.no_grad():
        logits = model(torch.randn(2, channels, 64, 96))
    assert logits.shape == (2, 1, 64, 96)
    assert float(logits.min()) < 0 or float(logits.max()) > 1  # logits, not probabilities


def kinds(model: torch.nn.Module) -> set[str]:
    decoder = model.decoder
    assert isinstance(decoder, torch.nn.Module)
    return {type(module).__name__ for module in decoder.modules()}


def test_decoder_options_reach_the_library() -> None:
    assert "SCSEModule" in kinds(model_of(decoder_attention_type="scse", decoder_channels=(64, 64, 32, 32, 16)))
    assert "SCSEModule" not in kinds(model_of())
    assert "BatchNorm2d" in kinds(model_of())
    assert "BatchNorm2d" not in kinds(model_of(decoder_use_norm=False))
    widths = [module.out_channels for module in model_of().modules() if isinstance(module, torch.nn.Conv2d)]
    assert widths[-3:] == [8, 8, 1]
    for interpolation in ("nearest", "bilinear"):
        model_of(decoder_interpolation=interpolation)


@pytest.mark.parametrize("norm", ["batchnorm", "identity", "instancenorm"])
def test_every_normalisation_that_the_schema_offers_can_be_built(norm: str) -> None:
    model = model_of(decoder_use_norm=norm).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 1, 32, 32)).shape == (1, 1, 32, 32)


@pytest.mark.parametrize(
    "values",
    [
        {"encoder": "resnet19"},
        {"encoder": "tu-no_such_network"},
        {"arch": "unett"},
        {"decoder_channels": (16, 8)},
        {"arch": "linknet", "decoder_channels": (16, 16, 8, 8, 8)},
        {"arch": "fpn", "decoder_channels": None, "decoder_attention_type": "scse"},
    ],
)
def test_option_that_the_library_does_not_have_is_an_input_error(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"model"):
        model_of(**values)


def test_an_unknown_encoder_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"^model\.encoder resnet35: unknown; did you mean .*resnet34"):
        model_of(encoder="resnet35")
    with pytest.raises(InputError, match=r"^model\.encoder zzz: unknown; names of timm encoders start with tu-"):
        model_of(encoder="zzz")


def test_every_option_that_an_architecture_lacks_is_named() -> None:
    with pytest.raises(InputErrors) as caught:
        model_of(arch="fpn", decoder_channels=(8, 8), decoder_attention_type="scse")
    assert [message.split(":")[0] for message in caught.value.messages] == [
        "model.decoder_channels",
        "model.decoder_attention_type",
    ]


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("segmentation_models_pytorch.encoders.hf_hub_download", refuse)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)


def test_no_hub_is_contacted_without_pretrained_weights(no_hub: None) -> None:
    build_model(config_of(encoder_weights="imagenet"), pretrained=False)


def test_weights_that_cannot_be_fetched_are_an_input_error_with_a_fix(no_hub: None) -> None:
    with pytest.raises(InputError, match=r"pretrained weights of resnet18 cannot be fetched.*fetch-weights"):
        build_model(config_of(encoder_weights="imagenet"), pretrained=True)


def test_same_seed_gives_the_same_weights() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(4)
        states.append(model_of().state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(
    ("encoder", "parameters"),
    [
        ("efficientnet-b0", 4_000_000),
        ("tu-resnet18", 11_000_000),
        ("se_resnext50_32x4d", 25_000_000),
        ("se_resnext101_32x4d", 46_000_000),
        pytest.param("senet154", 113_000_000, marks=pytest.mark.slow),
    ],
)
def test_large_encoders_are_built_offline(no_hub: None, encoder: str, parameters: int) -> None:
    config = ModelConfig.model_validate({"encoder": encoder, "encoder_weights": "imagenet"})
    model = build_model(config, pretrained=False).eval()
    actual = sum(parameter.numel() for parameter in model.get_submodule("encoder").parameters())
    assert actual == pytest.approx(parameters, rel=0.05)
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 1, 64, 64)


# The classification head


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_head_gives_one_class_logit_per_film(dropout: float) -> None:
    model = model_of(classification={"dropout": dropout})
    assert [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)] == ([dropout] if dropout else [])
    outputs = model(torch.randn(3, 1, 64, 64))
    logits, class_logits = split_outputs(outputs)
    assert logits is not None and logits.shape == (3, 1, 64, 64)
    assert class_logits is not None and class_logits.shape == (3, 1)
    assert logits is outputs[0] and class_logits is outputs[1]


def test_network_without_a_head_has_no_class_logits() -> None:
    logits, class_logits = split_outputs(model_of()(torch.randn(2, 1, 64, 64)))
    assert logits is not None and logits.shape == (2, 1, 64, 64) and class_logits is None


# Freezing


@pytest.mark.parametrize("values", [{}, {"arch": "fcn", "decoder_channels": None, "fcn": {"norm": True}}])
def test_frozen_encoder_gets_no_gradient_and_keeps_its_statistics(values: dict[str, Any]) -> None:
    torch.manual_seed(1)
    model = model_of(**values).train()
    encoder, decoder = model.get_submodule("encoder"), model.get_submodule("decoder")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(torch.randn(2, 1, 64, 64) + 2.0).square().mean().backward()
        optimizer.step()

    freeze_encoder(model, True)
    before = copies(encoder), copies(decoder)
    step()
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert all(same(copies(encoder), before[0])), "weights or statistics of the frozen encoder changed"
    # Every weight, batch-norm statistic and counter of the decoder changes.
    assert not any(same(copies(decoder), before[1]))
    freeze_encoder(model, False)
    before = copies(encoder), copies(decoder)
    step()
    assert all(parameter.grad is not None for parameter in encoder.parameters())
    assert not any(same(copies(encoder), before[0]))


# Encoder weights from a file


def file_config(path: Path, content: bytes | None = None, **values: Any) -> ModelConfig:
    digest = hashlib.sha256(path.read_bytes() if content is None else content).hexdigest()
    file_values = {"in_channels": 3, "encoder_weights_file": str(path), "encoder_weights_sha256": digest}
    return config_of(**{**file_values, **values})


@pytest.fixture
def weights(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """Return a file that `encoder_state` wrote, and its content."""
    torch.manual_seed(7)
    path = tmp_path / "resnet18.pt"
    path.write_bytes(encoder_state(config_of(encoder_weights=None)))
    return path, torch.load(path, weights_only=True)


def encoder_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return copies(model.get_submodule("encoder"))


def test_weights_of_a_file_are_the_encoders(weights: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, state = weights
    torch.manual_seed(8)
    assert all(same(encoder_of(build_model(file_config(path), pretrained=True)), dict(state)))


def test_safetensors_hold_the_same_weights(weights: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path = weights[0].with_suffix(".safetensors")
    safetensors.torch.save_file(dict(weights[1]), path)
    actual = encoder_of(build_model(file_config(path), pretrained=True))
    assert all(same(actual, dict(weights[1])))


def test_file_is_read_only_for_pretrained_weights(tmp_path: Path) -> None:
    build_model(file_config(tmp_path / "missing.pt", b""), pretrained=False)


def test_weights_of_three_channels_fit_one_channel(weights: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, state = weights
    model = build_model(file_config(path, in_channels=1), pretrained=True).eval()
    actual = encoder_of(model)
    library: Any = build_model(config_of(in_channels=3), pretrained=False).get_submodule("encoder")
    library.load_state_dict(state)
    library.set_in_channels(1, pretrained=True)
    assert all(same(actual, copies(library)))
    assert torch.equal(actual["conv1.weight"], state["conv1.weight"].sum(1, keepdim=True))
    with torch.no_grad():
        assert model(torch.zeros(1, 1, 64, 64)).shape == (1, 1, 64, 64)


def test_file_for_a_timm_encoder_needs_three_channels(tmp_path: Path) -> None:
    path = tmp_path / "tu.pt"
    path.write_bytes(encoder_state(config_of(encoder="tu-resnet18")))
    state = torch.load(path, weights_only=True)
    assert all(same(encoder_of(build_model(file_config(path, encoder="tu-resnet18"), pretrained=True)), dict(state)))
    with pytest.raises(InputError, match="in_channels: 3"):
        build_model(file_config(path, encoder="tu-resnet18", in_channels=1), pretrained=True)


def refused(config: ModelConfig) -> str:
    with pytest.raises(InputError) as caught:
        build_model(config, pretrained=True)
    message = str(caught.value)
    assert "\n" not in message and "model.encoder_weights_file" in message
    return message


def test_other_content_is_refused_with_its_digest(weights: tuple[Path, dict[str, torch.Tensor]]) -> None:
    path, _ = weights
    message = refused(file_config(path, b"other"))
    assert str(path) in message and hashlib.sha256(path.read_bytes()).hexdigest() in message


def test_missing_file_is_named(tmp_path: Path) -> None:
    message = refused(file_config(tmp_path / "missing.pt", b""))
    assert "missing.pt: No such file" in message


@pytest.mark.parametrize("encoder", ["resnet34", "efficientnet-b0"])
def test_weights_of_another_encoder_are_refused(weights: tuple[Path, dict[str, torch.Tensor]], encoder: str) -> None:
    assert f"holds no weights of {encoder}" in refused(file_config(weights[0], encoder=encoder))


@pytest.mark.parametrize("kind", ["pickle", "text", "text in safetensors"])
def test_other_file_is_refused_and_not_unpickled(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    path = tmp_path / ("harm.safetensors" if "safetensors" in kind else "harm.pt")
    if kind == "pickle":
        torch.save({"conv1.weight": Harm()}, path)
    else:
        path.write_bytes(b"no weights")
    assert "holds no weights" in refused(file_config(path))
    assert "unpickled" not in capsys.readouterr().out
