"""Quick checks of the shards and the pretrained weights."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from pneumo_dist.config.experiment import Experiment
from pneumo_dist.config.model import ModelConfig
from pneumo_dist.doctor.findings import Finding, error, from_message, ok, warning
from shards.dataset.table import MEMBERS, Shards
from shards.errors import InputError
from shards.files import sha256_file

SAMPLED_TARS = 16
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


def check_shards(folder: Path) -> list[Finding]:
    """Check manifest, table and the size of every tar, and the checksums of one film in some tars."""
    fix = f"restore it from a copy or rebuild it; then check everything with 'python -m shards verify {folder}'"
    try:
        shards = Shards(folder)
        try:
            faults = [*_faults(shards)]
            films_read = 0 if faults else _read_films(shards)
        finally:
            shards.close()
    except InputError as exception:
        return [error("shards", str(exception), fix)]
    except OSError as exception:
        return [error("shards", f"{exception.filename or folder}: {exception.strerror}", fix)]
    if faults:
        more = f" ({len(faults) - 1} more)" if len(faults) > 1 else ""
        return [error("shards", f"{faults[0]}{more}", fix)]
    tars = len(shards.manifest["shards"])
    message = f"{folder}: {len(shards)} films in {tars} tars of the right size; {films_read} sampled films are intact"
    return [ok("shards", message)]


def _faults(shards: Shards) -> Iterator[str]:
    for shard in shards.manifest["shards"]:
        path = shards.folder / shard["name"]
        if not path.is_file():
            yield f"{path}: missing"
        elif path.stat().st_size != shard["bytes"]:
            yield f"{path}: {path.stat().st_size} bytes, but the manifest says {shard['bytes']}"


def _read_films(shards: Shards) -> int:
    """Read one film of each of up to `SAMPLED_TARS` tars, evenly spread, and return their number.

    Raises InputError for a film that does not match its checksum.
    """
    _, first = np.unique(shards.column("shard"), return_index=True)
    chosen = np.unique(np.linspace(0, len(first) - 1, min(SAMPLED_TARS, len(first))).astype(int))
    for row in first[chosen]:
        for member in MEMBERS:
            if shards.column(f"{member}_size")[row] >= 0:
                shards.read(int(row), member)
    return len(chosen)


def train_tars(folder: Path) -> int:
    """Return the number of tars with training films; 0 for a dataset that cannot be read."""
    try:
        shards = Shards(folder)
    except InputError:
        return 0
    return sum(shard["name"].startswith("train-") for shard in shards.manifest["shards"])


def check_weights(
    model: ModelConfig, is_cached: Callable[[ModelConfig], bool], env: Mapping[str, str]
) -> list[Finding]:
    """Check that the config's pretrained weights are on this node. Nothing is downloaded."""
    if model.encoder_weights_file is not None:
        path = Path(model.encoder_weights_file)
        fix = "set the path and SHA-256 of a file that 'python -m pneumo_dist fetch-weights' wrote"
        try:
            digest = sha256_file(path)
        except OSError as exception:
            return [error("weights", f"model.encoder_weights_file {path}: {exception.strerror}", fix)]
        if digest != model.encoder_weights_sha256:
            return [error("weights", f"model.encoder_weights_file {path}: its SHA-256 is {digest}", fix)]
        mismatch = weights_mismatch(model)
        return [mismatch] if mismatch else [ok("weights", f"{path}, with the config's SHA-256")]
    if model.encoder_weights is None:
        return []
    name = f"{model.encoder_weights} weights of {model.encoder}"
    try:
        if is_cached(model):
            return [ok("weights", f"{name}, in the hub's cache")]
    except KeyError:
        return [error("weights", f"there are no {name}", "set model.encoder_weights to a name that the library knows")]
    fetch = "run 'python -m pneumo_dist fetch-weights' on a machine that can reach the hub, and use its file"
    message = f"{name} are not in the hub's cache"
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if env.get(variable, "").upper() in ("1", "ON", "YES", "TRUE"):
            return [error("weights", f"{message}, and {variable} forbids downloading them", f"unset it, or {fetch}")]
    return [warning("weights", f"{message}; training would download them", f"if this node cannot reach a hub, {fetch}")]


def check_init_file(experiment: Experiment) -> list[Finding]:
    """Check that `init.file` has the config's SHA-256 and holds the weights of the config's network."""
    from pneumo_dist.network.fit import meta_model
    from pneumo_dist.network.weights import load_network_file

    try:
        model = meta_model(experiment.model)
    except InputError:
        return []  # reported by the check of the network
    try:
        load_network_file(model, experiment, assign=True)
    except InputError as exception:
        return [from_message("weights", str(exception))]
    assert experiment.init is not None
    return [ok("weights", f"{experiment.init.file}, with the config's SHA-256")]


def weights_mismatch(model: ModelConfig) -> Finding | None:
    """Return an error if the tensors in the config's file of weights are not those of its encoder."""
    from pneumo_dist.network.fit import meta_model
    from pneumo_dist.network.weights import load_encoder_file

    try:
        # The file is for three channels, however many the network takes.
        encoder = meta_model(model.model_copy(update={"in_channels": 3})).get_submodule("encoder")
    except InputError:
        return None  # reported by the check of the network
    try:
        load_encoder_file(encoder, model, assign=True)
    except InputError as exception:
        return from_message("weights", str(exception))
    return None


def is_cached(model: ModelConfig) -> bool:
    """Return whether a model's encoder weights are in the hub's cache, where the library looks for them.

    The cache is searched as by `get_encoder` of segmentation_models_pytorch; encoders named `tu-…` are timm's.

    Raises:
        KeyError: The encoder is known, but has no such weights.
    """
    from huggingface_hub import try_to_load_from_cache

    if model.encoder.startswith("tu-"):
        import timm

        settings = timm.models.get_pretrained_cfg(model.encoder.removeprefix("tu-"))
        if settings is None or not settings.hf_hub_id:
            raise KeyError(model.encoder)
        files = [(settings.hf_hub_id, name, None) for name in WEIGHT_FILES]
    else:
        from segmentation_models_pytorch.encoders import encoders

        if model.encoder not in encoders:
            return False  # an old name of one of timm's encoders, which the library translates
        pretrained = encoders[model.encoder]["pretrained_settings"][model.encoder_weights]
        files = [(pretrained["repo_id"], WEIGHT_FILES[0], pretrained["revision"])]
    return any(isinstance(try_to_load_from_cache(repo, name, revision=rev), str) for repo, name, rev in files)
