"""Networks that a stage cannot train, batches that ranks cannot divide, and the size of checkpoints."""

import torch
from builders import experiment_of
from only_finding import only

from pneumo_dist.config.experiment import Experiment
from pneumo_dist.doctor.findings import Finding, Status
from pneumo_dist.doctor.model import check_batches, check_network
from pneumo_dist.network.fit import meta_model

FCN = {"arch": "fcn", "fcn": {"widths": [4, 6, 8]}}
DEEPLAB = {"arch": "deeplabv3", "encoder": "resnet18"}


def network_of(experiment: Experiment) -> torch.nn.Module:
    return meta_model(experiment.model)


def findings_of(experiment: Experiment, shared_norm: int = 1) -> list[Finding]:
    return check_network(network_of(experiment), experiment, "x.yaml", shared_norm)


def test_good_network_is_described() -> None:
    experiment = experiment_of({"micro_batch": 2}, {"micro_batch": 4, "image_size": 96}, {"micro_batch": 2}, model=FCN)
    only(findings_of(experiment), Status.OK, "fcn, 0.0 million weights, accepts micro-batches of 2 x 64 px, 4 x 96 px")


def test_one_film_per_batch_norm_is_an_error_unless_ranks_share_it() -> None:
    single = {"micro_batch": 1}
    words = ("x.yaml: stage s1: with micro_batch 1 and image_size 64", "one value per channel", "set micro_batch: 2")
    only(findings_of(experiment_of({}, single, model=DEEPLAB), shared_norm=2), Status.ERROR, *words)
    only(findings_of(experiment_of({}, single, model={**DEEPLAB, "sync_batch_norm": True}), shared_norm=2), Status.OK)


def test_averaged_weights_are_measured_in_evaluation_batches() -> None:
    stage = {"eval_batch": 1, "optim": {"swa_epochs": 1}}
    only(
        findings_of(experiment_of(stage, model=DEEPLAB)), Status.ERROR, "with eval_batch 1", "set eval_batch: 2 or more"
    )


def test_unsupported_size_is_reported_for_each_stage() -> None:
    findings = findings_of(experiment_of({}, {"image_size": 256}, {}, model={"arch": "pan", "encoder": "resnet18"}))
    assert [finding.message.split(":")[1] for finding in findings] == [" stage s0", " stage s2"]
    only(findings[:1], Status.ERROR, "pan with encoder resnet18 does not accept image_size 64 (", "or change model.*")


def test_whole_films_of_a_stage_that_trains_on_crops_must_fit_the_network_too() -> None:
    odd = {"arch": "albunet", "encoder": "resnet18"}
    stage = {"image_size": 64, "eval_image_size": 96}
    message = "albunet with encoder resnet18 does not accept eval_image_size 96 ("
    only(findings_of(experiment_of(stage, model=odd)), Status.ERROR, message, "set another eval_image_size")
    only(findings_of(experiment_of({**stage, "eval_image_size": 128}, model=odd)), Status.OK, "2 x 64 px")
    # Nothing is trained at that side, so a batch norm may have one value there.
    single = {"image_size": 64, "eval_image_size": 96, "micro_batch": 2, "eval_batch": 1}
    only(findings_of(experiment_of(single, model=DEEPLAB)), Status.OK)


def test_batch_that_the_ranks_cannot_divide() -> None:
    experiment = experiment_of({"global_batch": 8, "micro_batch": 2}, {"global_batch": 12, "micro_batch": 4}, model=FCN)
    assert check_batches(experiment, "x.yaml", world=1) == []
    only(check_batches(experiment, "x.yaml", world=2), Status.ERROR, "x.yaml: stage s1: global_batch 12", "8 or 16")
