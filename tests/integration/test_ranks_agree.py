"""Ranks train, validate, save and predict with one model, and its score does not depend on their number."""

import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from builders import phantom_shards
from integration.conftest import ROOT, environment

from pneumo_dist.config.ensemble import EnsembleConfig, MemberConfig, TtaConfig
from pneumo_dist.config.experiment import Experiment
from pneumo_dist.config.model import ModelConfig
from pneumo_dist.data.films import InputSpec
from pneumo_dist.data.loader import eval_loader
from pneumo_dist.data.plan import split_fold
from pneumo_dist.maps.store import Predictions
from pneumo_dist.network.batch_norm import recompute_statistics
from pneumo_dist.network.build import build_model
from pneumo_dist.predict import ensemble as inference
from pneumo_dist.predict.average import averaged_checkpoint
from pneumo_dist.predict.ensemble import (
    Ensemble,
    EnsembleNetwork,
    NetworkInput,
    TrainedNetwork,
    find_trained_folds,
    resolve,
)
from pneumo_dist.predict.predict import PredictOptions, predict
from pneumo_dist.ranks.ddp import wrap_ddp
from pneumo_dist.ranks.ranks import Ranks, process_group
from pneumo_dist.runs.checkpoint import load_checkpoint, weights_of
from pneumo_dist.runs.checkpoint_folder import CheckpointFolder
from pneumo_dist.runs.fold_run import FoldRun
from pneumo_dist.train import stage as trainer
from pneumo_dist.train.fold import train_fold
from pneumo_dist.train.step import Learner
from pneumo_dist.train.validation import Validation, ValidationFilms, validate
from shards.dataset.table import Shards
from shards.parent import die_with_parent

pytestmark = pytest.mark.slow

WORLDS = (1, 2, 4)
BATCHES = 3  # of seven films
SGD = {"name": "sgd", "lr": 0.05}
EXPERIMENT = Experiment.model_validate(
    {
        "name": "x",
        "amp": "float32",
        "model": {"arch": "fcn", "in_channels": 1, "fcn": {"widths": (4, 6, 8), "norm": True}},
        "data": {"loader": "dali", "threads": 1},
        "stages": [
            {"image_size": 64, "global_batch": 2, "micro_batch": 1, "eval_batch": 3, "top_k": 9, "optim": SGD, **given}
            for given in (
                {"name": "frozen", "epochs": 2, "freeze_encoder_epochs": 1},
                {"name": "ema", "epochs": 2, "optim": {**SGD, "ema_decay": 0.8}},
                {"name": "swa", "epochs": 4, "optim": {**SGD, "swa_epochs": 2}},
            )
        ],
    }
)
STAGES = tuple(stage.name for stage in EXPERIMENT.stages)


def digest(tensors: Iterable[torch.Tensor]) -> str:
    return hashlib.sha256(b"".join(tensor.detach().numpy().tobytes() for tensor in tensors)).hexdigest()


def fixed_model_figures(shards: Shards, ranks: Ranks) -> dict[str, Any]:
    """Figures of a fixed model, which do not depend on the number of ranks."""
    stage, split = EXPERIMENT.stages[0], split_fold(shards, 0, always_train=False)
    input_spec = InputSpec(stage.image_size, 1, EXPERIMENT.data)
    torch.manual_seed(0)
    model = build_model(EXPERIMENT.model, pretrained=False)
    training, films = (
        eval_loader(shards, rows, stage, input_spec, ranks.rank, ranks.world, with_mask=True)
        for rows in (split.train, split.validation)
    )
    recompute_statistics(model, training, ranks, "float32")
    shown = frozenset(split.validation[:2].tolist())
    result = validate(model, ValidationFilms(shards, films, BATCHES, shown), stage.loss, ranks, "float32")
    overlays = [(each.name, digest(map(torch.from_numpy, (each.image, each.p8)))) for each in result.overlays]
    return {
        "films": [len(split.train), len(split.validation)],
        "statistics": digest(model.buffers()),
        "score": [repr(value) for value in (result.triplet, result.best, result.plain, result.loss)],
        "pixels": result.pixels.tolist(),
        "overlays": overlays,
    }


class Notes:
    """Digests of the weights with which a rank trains, validates and predicts, by stage."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, list[str]]] = {name: {} for name in STAGES}
        self.stage = ""
        self.built: list[torch.nn.Module] = []

    def add(self, kind: str, tensors: Iterable[torch.Tensor]) -> None:
        self.found[self.stage].setdefault(kind, []).append(digest(tensors))

    def watch(self) -> None:
        share, end, start = Learner.share_buffers, Learner.end_epoch, Learner.start_epoch

        def noted_share(learner: Learner) -> None:
            self.add("own buffers", learner.model.buffers())
            share(learner)

        def noted_start(learner: Learner, epoch: int) -> None:
            self.stage = learner._stage.name
            start(learner, epoch)

        def noted_end(learner: Learner, *result: float) -> None:
            self.add("parameters", learner.model.parameters())
            self.add("encoder", learner.model.get_submodule("encoder").parameters())
            end(learner, *result)

        def noted_validate(model: torch.nn.Module, *arguments: Any) -> Validation:
            self.add("validated", model.state_dict().values())
            return validate(model, *arguments)

        def noted_build(*arguments: Any, **options: Any) -> torch.nn.Module:
            self.built.append(build_model(*arguments, **options))
            return self.built[-1]

        mock.patch.multiple(Learner, share_buffers=noted_share, start_epoch=noted_start, end_epoch=noted_end).start()
        mock.patch.object(trainer, "validate", noted_validate).start()
        mock.patch.object(inference, "build_model", noted_build).start()


def trained_figures(shards: Shards, ranks: Ranks, runs: Path) -> dict[str, Any]:
    """The weights with which this rank trained, validated and predicted, and those in the checkpoints."""
    notes = Notes()
    notes.watch()
    run = runs / EXPERIMENT.name
    train_fold(FoldRun(EXPERIMENT, 0, shards, run / "fold0", ranks), Experiment.model_dump_json)  # JSON is YAML
    for stage in STAGES:
        notes.stage = stage
        member = MemberConfig(experiment=EXPERIMENT.name, stage=stage, top_k=9)
        config = EnsembleConfig(name=EXPERIMENT.name, members=(member,), tta=TtaConfig(hflip=False))
        ensemble = resolve(config, runs, [0], ranks, no_average, EXPERIMENT)
        predict(ensemble, shards, runs / "predictions" / stage, ranks, PredictOptions("oof", (0,), models=9))
        for model in notes.built:
            notes.add("predicted", model.state_dict().values())
        notes.built.clear()
    return notes.found


def no_average(*_: Any) -> Path:
    raise AssertionError


def averaged_figures(shards: Shards, ranks: Ranks, runs: Path, folder: Path) -> dict[str, str]:
    """The average of two ranks' checkpoints on these ranks, and its predictions."""
    member = MemberConfig(experiment=EXPERIMENT.name, stage="ema", average="weights")
    (trained_fold,) = find_trained_folds(member, runs, [0], EXPERIMENT)
    path = averaged_checkpoint(member, trained_fold, folder / "average", shards, ranks)
    config = EnsembleConfig(name="averaged", members=(member,))
    ensemble = resolve(config, runs, [0], ranks, lambda *_: path, EXPERIMENT)
    predict(ensemble, shards, folder / "predictions", ranks, PredictOptions("oof", (0,), block=4))
    table = Predictions(folder / "predictions")
    return {"checkpoint": path.name, "predictions": table.digest, "films": str(len(table))}


def blend_figures(shards: Shards, ranks: Ranks, folder: Path) -> dict[str, Any]:
    """The predictions of fixed networks whose sides, channels and normalisation differ."""

    def network(number: int, side: int, channels: int, mean: float) -> EnsembleNetwork:
        model = EXPERIMENT.model.model_copy(update={"in_channels": channels})

        def read() -> TrainedNetwork:
            torch.manual_seed(number)
            # No lineage: it was not trained on any film.
            return TrainedNetwork(model, build_model(model, pretrained=False).state_dict(), "float32", ())

        network_input = NetworkInput(side, channels, (mean,) * 3, (0.5,) * 3)
        return EnsembleNetwork(f"n{number}", number, 0, 1.0 + number, network_input, model, read)

    networks = network(0, 64, 1, 0.0), network(1, 96, 3, 0.2), network(2, 96, 3, 0.0), network(3, 64, 1, 0.0)
    tta = TtaConfig(scales=(1.0, 1.5), scale_weights=(2.0, 1.0))
    ensemble = Ensemble("blend", networks, 96, EXPERIMENT.data, 2, tta)
    digests = []
    for models in (2, None):  # one network at a time, and all together
        predict(ensemble, shards, folder / str(models), ranks, PredictOptions("oof", (0,), block=4, models=models))
        digests.append(Predictions(folder / str(models)).digest)
    films = len(Predictions(folder / "None"))
    return {"inputs": len(ensemble.inputs), "films": films, "predictions": digests}


def attention_figures(ranks: Ranks) -> dict[str, Any]:
    """The parameters of a U-Net with scSE that train on two ranks, and their gradients after two steps."""
    config = ModelConfig(encoder="resnet18", in_channels=1, decoder_attention_type="scse")
    torch.manual_seed(0)
    model = build_model(config, pretrained=False)
    network = wrap_ddp(model, ranks, torch.zeros(2, 1, 64, 64), "float32")
    for step in range(2):
        torch.manual_seed(10 * step + ranks.rank)
        model.zero_grad(set_to_none=True)
        network(torch.randn(2, 1, 64, 64)).square().mean().backward()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    silent = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    return {"trained": len(trained), "silent": silent, "gradients": digest(gradients), "count": len(gradients)}


def group_norm_figures(ranks: Ranks) -> list[float]:
    """The norms of the gradients of a network with group norm, for two films that the ranks share."""
    config = ModelConfig(encoder="resnet18", in_channels=1, norm="group_ws")
    torch.manual_seed(0)
    model = build_model(config, pretrained=False)
    films = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(1))[ranks.rank :: ranks.world]
    network = wrap_ddp(model, ranks, torch.zeros_like(films), "float32")
    network(films).square().mean().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    return [float(gradient.norm()) for gradient in gradients if gradient is not None]


def on_rank(rank: int, world: int, port: int, shards: Path, folder: Path) -> None:
    """Join the other ranks and write this rank's figures."""
    die_with_parent()
    torch.set_num_threads(1)
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in variables.items()})
    with process_group(cpu=True) as ranks:
        found: dict[str, Any] = {"fixed": fixed_model_figures(Shards(shards), ranks)}
        found["blend"] = blend_figures(Shards(shards), ranks, folder / f"blend-{world}")
        if world == 2:
            found["trained"] = trained_figures(Shards(shards), ranks, folder / "runs")
            found["attention"] = attention_figures(ranks)
            found["group norm"] = group_norm_figures(ranks)
        if world >= 2:
            found["averaged"] = averaged_figures(Shards(shards), ranks, folder / "runs", folder / f"averaged-{world}")
        (folder / f"{world}-{rank}.json").write_text(json.dumps(found))


def main(shards: Path, folder: Path) -> None:
    """Fork the ranks from a process that has imported torch and computed nothing, which imports it once for all."""
    for world in WORLDS:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        arguments = (world, port, shards, folder)
        torch.multiprocessing.start_processes(on_rank, arguments, nprocs=world, start_method="fork")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """Fourteen phantom films, seven in each of two folds."""
    return phantom_shards(tmp_path_factory.mktemp("fourteen"), films=14, size=64)


@pytest.fixture(scope="module")
def folder(shards: Shards, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the figures of every rank, and the runs of two ranks."""
    folder = tmp_path_factory.mktemp("ranks")
    # Not as a script: each process that reads films would import it again, with torch.
    code = "import sys; from pathlib import Path; from integration.test_ranks_agree import main; "
    command = [sys.executable, "-c", f"{code}main(*map(Path, sys.argv[1:]))", str(shards.folder), str(folder)]
    variables = {**environment(), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    result = subprocess.run(command, env=variables, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


def noted(folder: Path, world: int, kind: str) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{world}-{rank}.json").read_text())[kind] for rank in range(world)]


def test_statistics_and_score_of_a_model_do_not_depend_on_the_number_of_ranks(folder: Path) -> None:
    (alone,) = noted(folder, 1, "fixed")
    assert alone["films"] == [7, 7], "these divide by none of 2 and 4"
    assert len(alone["overlays"]) > 2
    for world in WORLDS[1:]:
        first, *others = noted(folder, world, "fixed")
        assert first == alone
        assert others == [{**alone, "overlays": []}] * (world - 1), "only rank 0 draws"


def test_ranks_have_the_same_parameters_after_the_encoder_is_unfrozen(folder: Path) -> None:
    first, second = noted(folder, 2, "trained")
    for stage in STAGES:
        assert first[stage]["parameters"] == second[stage]["parameters"], stage
        assert len(set(first[stage]["parameters"])) == len(first[stage]["parameters"])
    frozen, thawed = first["frozen"]["encoder"]
    assert frozen != thawed, "the encoder has not trained since"


def saved_weights(folder: Path, stage: str) -> dict[int, str]:
    """The digest of the weights in each checkpoint of a stage, by step."""
    files = CheckpointFolder(folder / "runs/x/fold0" / stage / "checkpoints").files()
    return {file.step: digest(weights_of(load_checkpoint(file.path)).values()) for file in files}


@pytest.mark.parametrize("stage", STAGES)
def test_all_ranks_validate_save_and_predict_with_rank_0s_statistics(folder: Path, stage: str) -> None:
    first, second = (rank[stage] for rank in noted(folder, 2, "trained"))
    # Recorded before a validation, then before its save.
    own = list(zip(first["own buffers"], second["own buffers"], strict=True))[::2]
    assert all(one != other for one, other in own), "the ranks cannot be told apart"
    assert first["validated"] == second["validated"]
    assert len(set(first["validated"])) == len(first["validated"])
    saved = saved_weights(folder, stage)
    assert [saved[step] for step in sorted(saved)] == first["validated"]
    assert sorted(first["predicted"]) == sorted(second["predicted"]) == sorted(saved.values())


def test_averaged_weights_and_their_predictions_do_not_depend_on_the_number_of_ranks(
    folder: Path, shards: Shards
) -> None:
    runs = noted(folder, 2, "averaged") + noted(folder, 4, "averaged")
    alone = averaged_figures(shards, Ranks.alone(), folder / "runs", folder / "averaged-1")
    assert alone["films"] == "7"
    assert runs == [alone] * 6


def test_predictions_of_a_mixed_blend_do_not_depend_on_the_number_of_ranks(folder: Path) -> None:
    (alone,) = noted(folder, 1, "blend")
    assert (alone["inputs"], alone["films"]) == (3, 7)
    assert len({*alone["predictions"]}) == 1
    for world in WORLDS[1:]:
        assert noted(folder, world, "blend") == [alone] * world


def test_mean_of_the_last_epochs_is_saved_from_the_first_of_them(folder: Path) -> None:
    files = sorted(CheckpointFolder(folder / "runs/x/fold0/swa/checkpoints").files(), key=lambda file: file.step)
    states = [load_checkpoint(file.path) for file in files]
    assert [state["averaged"] is None for state in states] == [True, True, False, False]
    names = [name for name in states[3]["model"] if name.endswith(("weight", "bias"))]
    mean = {name: (states[2]["model"][name].double() + states[3]["model"][name].double()) / 2 for name in names}
    for name in names:
        torch.testing.assert_close(states[3]["averaged"][name].double(), mean[name], rtol=1e-6, atol=1e-7)
    tracked = [value for name, value in states[3]["averaged"].items() if name.endswith("tracked")]
    assert {int(value) for value in tracked} == {BATCHES}


def test_group_norm_gives_two_ranks_of_one_film_the_gradient_of_one_rank_of_two(folder: Path) -> None:
    found: list[Any] = [*noted(folder, 2, "group norm")]
    one, other = found
    assert one == other and len(one) > 60 and min(one) > 0
    assert one == pytest.approx(group_norm_figures(Ranks.alone()), rel=1e-3)


def test_parameters_without_an_effect_do_not_block_the_ranks(folder: Path) -> None:
    """The library gives the last decoder block, which has no skip connection, an attention that it never uses."""
    one, other = noted(folder, 2, "attention")
    assert one == other
    assert one["silent"] and all(name.startswith("decoder.blocks.4.attention1") for name in one["silent"])
    assert one["trained"] == one["count"] > 60
