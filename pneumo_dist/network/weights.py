"""Load weights from files of other programs, under whatever names these use."""

import hashlib
import io
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from pneumo_dist.config.experiment import Experiment
from pneumo_dist.config.model import ModelConfig
from pneumo_dist.network.published import published_names
from pneumo_dist.network.tensors import check_tensors
from shards.errors import InputError

# Keys under which training programs store a network's weights next to other state.
WRAPPERS = ("averaged", "state_dict", "model_state_dict", "model", "net", "network", "encoder", "backbone", "module")
SHOWN_NAMES = 3

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights that a config names.

    Attributes:
        key: Key of the config that gives the path.
        path: Path of the file.
        sha256: Expected SHA-256, in hexadecimal.
        network: Name of the network or encoder that the weights are for.
        fix: What the user can do if they are another's.
    """

    key: str
    path: Path
    sha256: str
    network: str
    fix: str

    def __str__(self) -> str:
        return f"{self.key} {self.path}"


def load_encoder_file(encoder: torch.nn.Module, config: ModelConfig, assign: bool = False) -> None:
    """Load the config's `encoder_weights_file` into an encoder of three channels.

    Args:
        assign: Replace the encoder's tensors by the file's, as an encoder on the meta device needs.

    Raises:
        InputError: The file is missing, has another digest, or holds another network; names the differences.
    """
    fix = "give a file of this encoder, or set model.encoder to the file's"
    path, sha256 = Path(config.encoder_weights_file or ""), config.encoder_weights_sha256 or ""
    _load(encoder, WeightsFile("model.encoder_weights_file", path, sha256, config.encoder, fix), {}, assign)


def load_network_file(model: torch.nn.Module, experiment: Experiment, assign: bool = False) -> None:
    """Load the config's `init.file` into a network. Files that the first place published fit its architectures.

    Args:
        assign: As for `load_encoder_file`.

    Raises:
        InputError: As `load_encoder_file`.
    """
    config, init = experiment.model, experiment.init
    assert init is not None and init.file is not None and init.sha256 is not None
    network = "fcn" if config.arch == "fcn" else f"{config.arch} with {config.encoder}"
    fix = "give a file of this network, or set model.* to the file's"
    file = WeightsFile("init.file", Path(init.file), init.sha256, network, fix)
    _load(model, file, published_names(config.arch, list(model.state_dict())), assign)


def _load(module: torch.nn.Module, file: WeightsFile, other_names: Mapping[str, str], assign: bool) -> None:
    """Load a file under the module's own names, or under other names for them if these match more tensors."""
    state = _unwrapped(_read(file))
    if state is None:
        raise InputError(f"{file}: holds no weights of {file.network}; give another file")
    expected: Weights = module.state_dict()
    renamed = _renamed(state, expected)
    others = _renamed(state, set(other_names.values()))
    translated = {name: others[other] for name, other in other_names.items() if other in others}
    if len(translated) > sum(name in expected for name in renamed):
        renamed = translated
    check_tensors(renamed, file)
    try:
        module.load_state_dict(dict(renamed), assign=assign)  # a copy: some encoders remove the classifier's entries
    except (RuntimeError, TypeError, AttributeError, KeyError):
        raise InputError(
            f"{file}: holds no weights of {file.network}: {_difference(renamed, expected)}; {file.fix}"
        ) from None


def weights_line(experiment: Experiment) -> str:
    """Return a line that says which weights an experiment's first stage starts from."""
    init, config = experiment.init, experiment.model
    if init is not None:
        return f"the network starts from {init.file or f'the stage {init.stage} of {init.experiment}'}"
    if config.arch == "fcn":
        return "the network starts from random weights, as fcn has no pretrained ones"
    if config.encoder_weights_file is not None:
        return f"encoder {config.encoder} starts from {config.encoder_weights_file}"
    if config.encoder_weights is not None:
        return f"encoder {config.encoder} starts from {config.encoder_weights} weights"
    return f"encoder {config.encoder} starts from random weights (model.encoder_weights: null)"


def _read(file: WeightsFile) -> Any:
    try:
        content = file.path.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}; give the file of the weights") from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != file.sha256:
        raise InputError(f"{file}: its SHA-256 is {digest}; give that file or that digest")
    try:
        if file.path.suffix == ".safetensors":
            return safetensors.torch.load(content)
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # the readers raise many types
        raise InputError(
            f"{file}: holds no weights of {file.network} ({type(error).__name__}); give a file of tensors, as "
            "safetensors or of torch.save"
        ) from None


def _unwrapped(content: Any) -> Weights | None:
    """Return a file's tensors by name, at its top level or under one of the usual keys; None if it has none."""
    if not isinstance(content, Mapping):
        return None
    tensors = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    candidates = [tensors, *(_unwrapped(content.get(name)) or {} for name in WRAPPERS)]
    return max(candidates, key=len) or None


def _renamed(state: Weights, expected: Collection[str]) -> Weights:
    """Rename tensors to the encoder's names, by removing the prefix that matches most of them, such as `module.`.

    Files of timm lack a prefix instead. Tensors without the prefix, such as a decoder's, are dropped.
    """
    fits: Counter[tuple[str, str]] = Counter()
    for name in state:
        fits.update((prefix, "") for prefix, rest in _splits(name) if rest in expected)
    for name in expected:
        fits.update(("", prefix) for prefix, rest in _splits(name) if prefix and rest in state)
    if not fits:
        return state
    (before, after), _ = max(fits.items(), key=lambda item: (item[1], -len(item[0][0] + item[0][1])))
    return {after + name.removeprefix(before): value for name, value in state.items() if name.startswith(before)}


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """Yield each split of a dotted name into (prefix with its dot, rest), starting without a prefix."""
    parts = name.split(".")
    for count in range(len(parts)):
        yield "".join(f"{part}." for part in parts[:count]), ".".join(parts[count:])


def _difference(state: Weights, expected: Weights) -> str:
    """Describe the names that are missing, unknown or of another shape: their numbers and a few examples."""
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    shapes = [
        f"{name} {tuple(state[name].shape)} for {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    unknown = [name for name in state if name not in expected]
    kinds = {"missing": missing, "of another shape": shapes, "unknown": unknown}
    differences = [f"{len(names)} {kind} ({_examples(names)})" for kind, names in kinds.items() if names]
    return f"of its {len(expected)} tensors {', '.join(differences)}"


def _examples(names: Sequence[str]) -> str:
    return ", ".join([*names[:SHOWN_NAMES], *(["…"] if len(names) > SHOWN_NAMES else [])])
