"""Whether shards and pretrained weights are there and whole, as far as a quick look tells."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from pneumo_dist.config.model import ModelConfig
from pneumo_dist.doctor.findings import Finding, error, ok, refused, warning
from shards.dataset.table import MEMBERS, Shards
from shards.errors import InputError
from shards.files import sha256_file

LOOKED_AT = 16
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


def check_shards(folder: Path) -> list[Finding]:
    """Are manifest, table and every tar whole, and does a film of some tars match its checksum?"""
    mend = f"restore it from a copy or build again; 'python -m shards verify {folder}' then looks at everything"
    try:
        shards = Shards(folder)
        try:
            faults = [*_faults(shards)]
            read = 0 if faults else _read_some(shards)
        finally:
            shards.close()
    except InputError as fault:
        return [error("shards", str(fault), mend)]
    except OSError as fault:
        return [error("shards", f"{fault.filename or folder}: {fault.strerror}", mend)]
    if faults:
        more = f" ({len(faults) - 1} more)" if len(faults) > 1 else ""
        return [error("shards", f"{faults[0]}{more}", mend)]
    count = len(shards.manifest["shards"])
    return [ok("shards", f"{folder}: {len(shards)} films in {count} tars of the right size, {read} read and right")]


def _faults(shards: Shards) -> Iterator[str]:
    for shard in shards.manifest["shards"]:
        path = shards.folder / shard["name"]
        if not path.is_file():
            yield f"{path}: missing"
        elif path.stat().st_size != shard["bytes"]:
            yield f"{path}: {path.stat().st_size} bytes, the manifest says {shard['bytes']}"


def _read_some(shards: Shards) -> int:
    """Read one film of each of up to `LOOKED_AT` tars, evenly spread; return how many. Raises InputError."""
    _, first = np.unique(shards.column("shard"), return_index=True)
    chosen = np.unique(np.linspace(0, len(first) - 1, min(LOOKED_AT, len(first))).astype(int))
    for row in first[chosen]:
        for member in MEMBERS:
            if shards.column(f"{member}_size")[row] >= 0:
                shards.read(int(row), member)
    return len(chosen)


def train_tars(folder: Path) -> int:
    """Return how many tars of training films a dataset has; 0 where it cannot be read."""
    try:
        shards = Shards(folder)
    except InputError:
        return 0
    return sum(shard["name"].startswith("train-") for shard in shards.manifest["shards"])


def check_weights(
    model: ModelConfig, is_cached: Callable[[ModelConfig], bool], env: Mapping[str, str]
) -> list[Finding]:
    """Are the config's pretrained weights here? Nothing is fetched."""
    if model.encoder_weights_file is not None:
        path = Path(model.encoder_weights_file)
        mend = "give the file that 'python -m pneumo_dist fetch-weights' wrote, with the sha256 that it printed"
        try:
            digest = sha256_file(path)
        except OSError as fault:
            return [error("weights", f"model.encoder_weights_file {path}: {fault.strerror}", mend)]
        if digest != model.encoder_weights_sha256:
            return [error("weights", f"model.encoder_weights_file {path}: its SHA-256 is {digest}", mend)]
        misfit = unfitting(model)
        return [misfit] if misfit else [ok("weights", f"{path}, with the config's SHA-256")]
    if model.encoder_weights is None:
        return []
    name = f"{model.encoder_weights} weights of {model.encoder}"
    try:
        if is_cached(model):
            return [ok("weights", f"{name}, in the hub's cache")]
    except KeyError:
        return [error("weights", f"there are no {name}", "set model.encoder_weights to a name that the library has")]
    fetch = "run 'python -m pneumo_dist fetch-weights' where the hub can be reached, and give its file"
    found = f"{name} are not in the hub's cache"
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if env.get(variable, "").upper() in ("1", "ON", "YES", "TRUE"):
            return [error("weights", f"{found}, and {variable} forbids to fetch them", f"unset it, or {fetch}")]
    return [warning("weights", f"{found}; training would fetch them", f"where this node reaches no hub: {fetch}")]


def unfitting(model: ModelConfig) -> Finding | None:
    """Return why the config's file of weights is none of its encoder; None where it is one."""
    from pneumo_dist.network.fit import meta_model
    from pneumo_dist.network.weights import load_encoder_file

    try:
        # A file is for three channels, whatever the network then takes.
        encoder = meta_model(model.model_copy(update={"in_channels": 3})).get_submodule("encoder")
    except InputError:
        return None  # told of the network
    try:
        load_encoder_file(encoder, model, assign=True)
    except InputError as fault:
        return refused("weights", str(fault))
    return None


def is_cached(model: ModelConfig) -> bool:
    """Return whether the library finds a model's encoder weights without the network.

    It looks where segmentation_models_pytorch's `get_encoder` does; encoders `tu-…` are timm's. Raises KeyError for a
    known encoder that has no such weights.
    """
    from huggingface_hub import try_to_load_from_cache

    if model.encoder.startswith("tu-"):
        import timm

        settings = timm.models.get_pretrained_cfg(model.encoder.removeprefix("tu-"))
        if settings is None or not settings.hf_hub_id:
            raise KeyError(model.encoder)
        places = [(settings.hf_hub_id, name, None) for name in WEIGHT_FILES]
    else:
        from segmentation_models_pytorch.encoders import encoders

        if model.encoder not in encoders:
            return False  # an older name of one of timm's, which the library translates
        known = encoders[model.encoder]["pretrained_settings"][model.encoder_weights]
        places = [(known["repo_id"], WEIGHT_FILES[0], known["revision"])]
    return any(isinstance(try_to_load_from_cache(repo, name, revision=rev), str) for repo, name, rev in places)
