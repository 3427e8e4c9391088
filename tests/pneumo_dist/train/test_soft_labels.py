"""The loss of soft labels and of films without labels, and the steps that it makes."""

import math
from typing import Any

import pytest
import torch
from builders import experiment_of

from pneumo_dist.config.stage import StageConfig
from pneumo_dist.data.films import Batch
from pneumo_dist.network.build import build_model
from pneumo_dist.network.losses import combo_loss
from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.train.soft_labels import SoftLoss, ramp_up, second_view, terms_of
from pneumo_dist.train.step import Learner

ALONE = Ranks.alone()
FCN = {"arch": "fcn", "in_channels": 1, "fcn": {"widths": (4, 4, 8), "norm": True}}
EMA = {"lr": 0.01, "ema_decay": 0.9}


def stage_of(**unlabelled: Any) -> StageConfig:
    settings = {"image_size": 32, "global_batch": 4, "micro_batch": 4, "epochs": 3, "optim": EMA}
    return experiment_of({**settings, "unlabelled": {"share": 0.5, **unlabelled}}, model=FCN).stages[0]


def films(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, targets (two films of 0 and 1, two of any value), and logits."""
    chance = torch.Generator().manual_seed(seed)
    images, targets, logits = (torch.rand(4, 1, 32, 32, generator=chance) for _ in range(3))
    targets[:2] = (targets[:2] > 0.7).float()
    return images, targets, (8 * logits - 4).requires_grad_()


def distilled(**unlabelled: Any) -> StageConfig:
    settings = {"image_size": 32, "global_batch": 4, "micro_batch": 4, "optim": EMA, "distillation": {"from": "a"}}
    return experiment_of({**settings, "unlabelled": unlabelled or None}, model=FCN).stages[0]


class Mirror(torch.nn.Module):
    """A network whose logits are its input."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images


def test_pseudo_labels_are_weighted_by_their_confidence() -> None:
    stage = stage_of(**{"from": "a/b"})
    images, targets, logits = films()
    found = SoftLoss(stage, 1, "float32", 0)(images, targets, logits, None, None, 0)
    weights = torch.ones_like(targets)
    weights[2:] = (2 * targets[2:] - 1).abs()
    expected = combo_loss(logits, targets, stage.loss, weights=weights)
    assert set(found) == set(expected) == set(terms_of(stage))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=0)


def test_labels_with_a_teachers_map_have_weight_1_and_pseudo_labels_their_confidence() -> None:
    images, targets, logits = films()
    targets[:2] = 0.3 + 0.4 * targets[:2]
    alone, both = distilled(), distilled(**{"from": "b", "share": 0.5})
    found = SoftLoss(alone, 1, "float32", 0)(images, targets, logits, None, None, 0)
    expected = combo_loss(logits, targets, alone.loss, weights=torch.ones_like(targets))
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=0)
    weights = torch.ones_like(targets)
    weights[2:] = (2 * targets[2:] - 1).abs()
    found = SoftLoss(both, 1, "float32", 0)(images, targets, logits, None, None, 0)
    torch.testing.assert_close(found["loss"], combo_loss(logits, targets, both.loss, weights=weights)["loss"])


def test_unsure_pseudo_label_has_no_gradient() -> None:
    images, targets, logits = films()
    targets[3] = 0.5
    SoftLoss(stage_of(**{"from": "a/b"}), 1, "float32", 0)(images, targets, logits, None, None, 0)["loss"].backward()
    assert logits.grad is not None
    assert not logits.grad[3].any() and all(logits.grad[film].any() for film in range(3))


def test_without_pseudo_labels_only_films_with_labels_have_a_supervised_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pneumo_dist.train.soft_labels.second_view", lambda images: images)
    stage = stage_of(mean_teacher={"weight": 3.0, "ramp_up_epochs": 0})
    images, targets, logits = films()
    found = SoftLoss(stage, 1, "float32", 0)(images, targets, logits, None, Mirror(), 0)
    plain = combo_loss(logits[:2], targets[:2], stage.loss)
    # The teacher predicts the flipped film flipped, which is turned back.
    difference = (torch.sigmoid(logits[2:]) - torch.sigmoid(images[2:])).square().mean()
    torch.testing.assert_close(found["consistency"], difference)
    torch.testing.assert_close(found["loss"], plain["loss"] + 3 * difference)
    assert terms_of(stage) == ("loss", "bce", "dice", "focal", "consistency")


def test_teacher_sees_another_view_and_gets_no_gradient() -> None:
    torch.manual_seed(1)
    images = torch.rand(3, 3, 32, 32)
    view = second_view(images)
    assert view.shape == images.shape and not torch.equal(view, images)
    # The same film in three channels stays that.
    grey = second_view(images[:, :1].expand(-1, 3, -1, -1))
    assert torch.equal(grey[:, 0], grey[:, 1]) and torch.equal(grey[:, 0], grey[:, 2])
    teacher = torch.nn.Conv2d(1, 1, 1)
    stage = stage_of(mean_teacher={})
    images, targets, logits = films()
    SoftLoss(stage, 1, "float32", 0)(images, targets, logits, None, teacher, 0)["loss"].backward()
    assert teacher.weight.grad is None


def test_weight_of_the_consistency_rises_over_the_first_epochs() -> None:
    assert ramp_up(0, 10) == pytest.approx(math.exp(-5))
    assert ramp_up(5, 10) == pytest.approx(math.exp(-5 / 4))
    assert ramp_up(10, 10) == ramp_up(99, 10) == ramp_up(0, 0) == 1.0


def learner_of(stage: dict[str, Any], ramp: int = 0) -> Learner:
    settings = {"image_size": 32, "global_batch": 8, "micro_batch": 4, "epochs": 3, "optim": EMA}
    experiment = experiment_of({**settings, **stage}, model=FCN)
    torch.manual_seed(0)
    made = Learner(experiment, experiment.stages[0], ALONE, "float32", build_model(experiment.model, False), ramp)
    made.start_epoch(0)
    return made


def seed(micro: int) -> None:
    torch.manual_seed(micro)


def batches(levels: bool) -> list[Batch]:
    made = []
    for number in range(2):
        images, targets, _ = films(number)
        masks = (targets * 255).byte() if levels else targets
        made.append(Batch(images, masks, torch.arange(4).numpy()))
    return made


def test_step_counts_and_predicts_films_with_labels_only() -> None:
    learner = learner_of({"unlabelled": {"mean_teacher": {}}})
    step = learner.step(iter(batches(levels=True)), 2, 0, seed)
    labelled = sum(int(batch.masks[:2].gt(0).sum()) for batch in batches(levels=True))
    assert labelled <= step.pixels <= labelled + 4 * 32 * 32
    assert len(step.losses) == len(learner.terms) == 5


def test_mean_teacher_keeps_its_batch_norm_and_changes_the_step() -> None:
    learner, plain = learner_of({"unlabelled": {"mean_teacher": {"weight": 50.0}}}), learner_of({"micro_batch": 2})
    assert learner.average is not None
    before = {name: value.clone() for name, value in learner.average.model.state_dict().items()}
    decay = 0.9
    learner.step(iter(batches(levels=True)), 2, 0, seed)
    after, model = learner.average.model.state_dict(), learner.model.state_dict()
    for name, value in before.items():
        if value.is_floating_point():
            torch.testing.assert_close(after[name], decay * value + (1 - decay) * model[name], rtol=1e-5, atol=1e-6)
    halves = [Batch(each.images[:2], each.masks[:2], each.indices[:2]) for each in batches(levels=False)]
    plain.step(iter(halves), 2, 0, seed)
    weight = next(name for name in model if name.endswith("weight"))
    assert not torch.equal(plain.model.state_dict()[weight], model[weight])
