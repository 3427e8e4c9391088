"""Published checkpoints of the first place load under their own names and give the same maps."""

import hashlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
import torchvision  # type: ignore[import-untyped]
from builders import experiment_of
from torch import nn
from torch.nn.functional import max_pool2d

from pneumo_dist.network.build import build_model
from pneumo_dist.network.published import published_names
from pneumo_dist.network.weights import load_network_file


class Convolution(nn.Module):
    """A 3x3 convolution named `conv`, then a ReLU."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, 3, padding=1)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv(maps))


class Doubled(nn.Module):
    """Bilinear upsampling, then two convolutions, which are 1 and 2 in `block`."""

    def __init__(self, channels: int, inner: int, out: int) -> None:
        super().__init__()
        double = nn.Upsample(scale_factor=2, mode="bilinear")
        self.block = nn.Sequential(double, Convolution(channels, inner), Convolution(inner, out))

    def forward(self, maps: torch.Tensor) -> Any:
        return self.block(maps)


class PublishedAlbuNet(nn.Module):
    """AlbuNet with the published names, which include the encoder's layers a second time as conv1 to conv5."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = encoder = torchvision.models.resnet34()
        self.conv1 = nn.Sequential(encoder.conv1, encoder.bn1, encoder.relu, nn.MaxPool2d(2))
        self.conv2, self.conv3, self.conv4, self.conv5 = encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4
        self.center, self.dec5 = Doubled(512, 512, 256), Doubled(768, 512, 256)
        self.dec4, self.dec3, self.dec2 = Doubled(512, 512, 256), Doubled(384, 256, 64), Doubled(128, 128, 128)
        self.dec1, self.dec0, self.final = Doubled(128, 128, 32), Convolution(32, 32), nn.Conv2d(32, 1, 1)

    def forward(self, images: torch.Tensor) -> Any:
        maps, skips = self.conv1(images), []
        for layer in (self.conv2, self.conv3, self.conv4, self.conv5):
            maps = layer(maps)
            skips.append(maps)
        maps = self.center(max_pool2d(maps, 2))
        for block, skip in zip((self.dec5, self.dec4, self.dec3, self.dec2), reversed(skips), strict=True):
            maps = block(torch.cat([maps, skip], 1))
        return self.final(self.dec0(self.dec1(maps)))


class Layer(nn.Module):
    """Nearest upsampling, then a convolution, which is 1 in `layer`."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(channels, out, 3, padding=1), nn.ReLU())

    def forward(self, maps: torch.Tensor) -> Any:
        return self.layer(maps)


class PublishedScse(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, channels // 2, 1), nn.Conv2d(channels // 2, channels, 1)
        self.spatial_se = nn.Sequential(nn.Conv2d(channels, 1, 1, bias=False), nn.Sigmoid())

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        channel = torch.sigmoid(self.fc2(torch.relu(self.fc1(maps.mean((2, 3), keepdim=True)))))
        spatial: torch.Tensor = self.spatial_se(maps)
        return torch.max(channel * maps, spatial * maps)


class Bottleneck(nn.Module):
    def __init__(self, channels: int, out: int, has_scse: bool) -> None:
        super().__init__()
        scse = [PublishedScse(out)] if has_scse else []
        self.seq = nn.Sequential(nn.Conv2d(channels, out, 3, padding=1), nn.ReLU(), *scse)

    def forward(self, maps: torch.Tensor, skip: torch.Tensor) -> Any:
        return self.seq(torch.cat([maps, skip], 1))


class PublishedConcat(nn.Module):
    """U-Net with the published names; `widths` of the decoder count from the input, as its stages do."""

    def __init__(self, stages: list[nn.Module], widths: tuple[int, ...], last: int, has_scse: bool) -> None:
        super().__init__()
        filters = (64, 256, 512, 1024, 2048)
        self.encoder_stages = nn.ModuleList(stages)
        before = (*widths[1:], filters[-1])
        self.decoder_stages = nn.ModuleList(Layer(*pair) for pair in zip(before, widths, strict=True))
        pairs = zip(reversed(widths), reversed(filters[:-1]), strict=True)
        self.bottlenecks = nn.ModuleList(Bottleneck(width + skip, width, has_scse) for width, skip in pairs)
        self.last_upsample = Layer(widths[0], last)
        self.final = nn.Sequential(nn.Conv2d(last, 1, 1))

    def forward(self, images: torch.Tensor) -> Any:
        maps, skips = images, []
        for stage in self.encoder_stages:
            maps = stage(maps)
            skips.append(maps)
        for number, bottleneck in enumerate(self.bottlenecks, 1):
            maps = bottleneck(self.decoder_stages[-number](maps), skips[-number - 1])
        return self.final(self.last_upsample(maps))


def scse_unet() -> nn.Module:
    encoder: Any = smp.encoders.get_encoder("se_resnext50_32x4d", weights=None)
    stem = nn.Sequential(OrderedDict((name, encoder.layer0.get_submodule(name)) for name in ("conv1", "bn1", "relu1")))
    stages = [stem, nn.Sequential(encoder.layer0_pool, encoder.layer1), encoder.layer2, encoder.layer3, encoder.layer4]
    return PublishedConcat(stages, (64, 128, 256, 384), 32, has_scse=True)


def resnet_unet() -> nn.Module:
    encoder = torchvision.models.resnet50()
    stem, first = (
        nn.Sequential(encoder.conv1, encoder.bn1, encoder.relu),
        nn.Sequential(encoder.maxpool, encoder.layer1),
    )
    stages = [stem, first, encoder.layer2, encoder.layer3, encoder.layer4]
    return PublishedConcat(stages, (64, 128, 256, 256), 64, has_scse=False)


NETWORKS = {
    "albunet": (PublishedAlbuNet, "resnet34"),
    "scse_unet": (scse_unet, "se_resnext50_32x4d"),
    "resnet_unet": (resnet_unet, "resnet50"),
}


@pytest.mark.parametrize(("arch", "prefix"), [("albunet", "module."), ("scse_unet", ""), ("resnet_unet", "")])
def test_published_weights_give_the_published_maps(tmp_path: Path, arch: str, prefix: str) -> None:
    make, encoder = NETWORKS[arch]
    torch.manual_seed(5)
    published = make()
    for value in published.buffers():
        if value.is_floating_point():  # statistics that differ from a new network's
            nn.init.uniform_(value, 0.5, 1.5)
    path = tmp_path / "published.pth"
    torch.save({prefix + name: value for name, value in published.state_dict().items()}, path)
    init = {"file": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    experiment = experiment_of(model={"arch": arch, "encoder": encoder}, init=init)
    network = build_model(experiment.model, pretrained=False)
    load_network_file(network, experiment)
    images = torch.randn(1, 3, 64, 128)
    with torch.no_grad():
        expected = published.eval()(images)
        assert expected.std() > 0
        torch.testing.assert_close(network.eval()(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arch", NETWORKS)
def test_every_weight_has_its_own_published_name(arch: str) -> None:
    with torch.device("meta"):
        network = build_model(experiment_of(model={"arch": arch, "encoder": NETWORKS[arch][1]}).model, pretrained=False)
    names = published_names(arch, list(network.state_dict()))
    assert list(names) == list(network.state_dict()) and len(set(names.values())) == len(names)


def test_other_architectures_have_no_published_names() -> None:
    assert published_names("unet", ["encoder.conv1.weight"]) == {}
