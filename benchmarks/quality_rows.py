"""The rows of benchmarks.quality: each compares two sides that differ in one option."""

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks import BASELINE
from pneumo_dist.config.rules import RuleName


@dataclass(frozen=True)
class Side:
    """An experiment or an ensemble, which is made once for each seed.

    Attributes:
        name: Its name, before the seed.
        dataset: Name of the films in quality_films.
        config: The config to train: a path, or the name of a shipped one.
        settings: Values of `--set`.
        teacher: The side from whose maps of films without labels it learns.
        distils: The ensemble from whose maps of training films it learns.
        members: The sides of an ensemble, which is not trained itself.
        best: Whether the members predict with their best checkpoint alone.
        hflip: Whether the members also predict mirrored films.
        is_timed: Whether to measure the core-seconds of a film.
        selects: The candidates of `select`, which makes an ensemble of them: name, side, and options of `predict`.
    """

    name: str
    dataset: str
    config: str = str(BASELINE)
    settings: tuple[str, ...] = ()
    teacher: "Side | None" = None
    distils: "Side | None" = None
    members: "tuple[Side, ...]" = ()
    best: bool = False
    hflip: bool = True
    is_timed: bool = False
    selects: "tuple[tuple[str, Side, tuple[str, ...]], ...]" = ()

    @property
    def needs(self) -> "tuple[Side, ...]":
        """The sides that are made before it."""
        chosen = tuple(side for _, side, _ in self.selects)
        teachers = tuple(side for side in (self.teacher, self.distils) if side is not None)
        return (*teachers, *self.members, *chosen)


@dataclass(frozen=True)
class Row:
    """An option: its name, its text for the table, the sides without and with it, and their rules."""

    name: str
    text: str
    without: Side
    option: Side
    rule: RuleName = "triplet"
    option_rule: RuleName = "triplet"


# The demo's network for as many steps, each of eight films with labels. A moving average is on both sides of all rows,
# as the mean teacher needs it.
_FEW = ("global_batch=8", "micro_batch=8", "sample_rate=null", "epochs=100", "optim.ema_decay=0.98", "top_k=1")
# Eight films without labels more in each step.
_MIXED = (*_FEW, "global_batch=16", "micro_batch=16", "unlabelled.share=0.5")
# A weight of 10 after 5 epochs lowered the out-of-fold score from 0.78 to 0.64.
_MEAN_TEACHER = ("unlabelled.mean_teacher.weight=1", "unlabelled.mean_teacher.ramp_up_epochs=50")
_CLASSES = ("model.arch=classifier", "model.decoder_channels=null", "model.classification.dropout=0")
_CLASS_LOSS = ("loss.bce=0", "loss.dice=0", "loss.focal=0", "loss.classification=1")

FEW = Side("few", "few", settings=_FEW)
PSEUDO = Side("pseudo", "few", settings=_MIXED, teacher=FEW)
TEACHER = Side("mean-teacher", "few", settings=(*_MIXED, *_MEAN_TEACHER))
BOTH = Side("both", "few", settings=(*_MIXED, *_MEAN_TEACHER), teacher=FEW)

DEMO = Side("demo", "demo")
CLASSIFIER = Side("classifier", "demo", settings=(*_CLASSES, *_CLASS_LOSS))
SECOND_OPINION = Side("second-opinion", "demo", members=(DEMO, CLASSIFIER))
SELECTED = Side(
    "selected",
    "demo",
    selects=(
        ("first", DEMO, ("--top-k", "1")),
        ("first-unflipped", DEMO, ("--top-k", "1", "--no-hflip")),
        ("all", DEMO, ()),
        ("all-unflipped", DEMO, ("--no-hflip",)),
    ),
)
POSITIVE_DICE = Side("dice-positive", "demo", settings=("loss.dice_films=positive",))
WEIGHTED = Side("bce-weight", "demo", settings=("loss.bce_positive_weight=3",))
GROUP_NORM = Side("group-norm", "demo", settings=("model.norm=group_ws",))
CROPS = Side("crops", "demo", settings=("image_size=96", "eval_image_size=128"))

# Three of the shipped demo's networks, of each fold the three best checkpoints, flipped and not.
UNET = Side("unet", "demo", "demo")
RESNET34 = Side("unet-resnet34", "demo", "demo", ("model.encoder=resnet34",))
FPN = Side("fpn", "demo", "demo", ("model.arch=fpn", "model.decoder_channels=null"))
ENSEMBLE = Side("ensemble", "demo", members=(UNET, RESNET34, FPN), is_timed=True)
STUDENT = Side("student", "demo", "demo", ("distillation.share=0.5",), distils=ENSEMBLE)


def _best(name: str, side: Side, hflip: bool) -> Side:
    """Return a side's best checkpoint of each fold."""
    return Side(name, "demo", members=(side,), best=True, hflip=hflip, is_timed=True)


STUDENT_BEST, UNET_BEST = _best("student-best", STUDENT, hflip=False), _best("unet-best", UNET, hflip=False)
STUDENT_FLIPPED, UNET_FLIPPED = _best("student-flipped", STUDENT, hflip=True), _best("unet-flipped", UNET, hflip=True)
# The ensemble comes first: the others are compared with it.
DISTILLATION: Mapping[str, Side] = {
    "ensemble: U-Net resnet18, U-Net resnet34, FPN resnet18; three checkpoints of each, flipped and not": ENSEMBLE,
    "one U-Net resnet18 that learned from it": STUDENT_BEST,
    "one U-Net resnet18 that learned from it, flipped and not": STUDENT_FLIPPED,
    "one U-Net resnet18 that learned from masks alone": UNET_BEST,
    "one U-Net resnet18 that learned from masks alone, flipped and not": UNET_FLIPPED,
}

ROWS = (
    Row("pseudo", "`unlabelled.from`: pseudo-labels of 600 films beside 60 with labels", FEW, PSEUDO),
    Row("mean-teacher", "`unlabelled.mean_teacher` on the same 600 films", FEW, TEACHER),
    Row("both", "both together", FEW, BOTH),
    Row("stacking", "`--rule stacking`: the stacked gate on the maps alone", DEMO, DEMO, option_rule="stacking"),
    Row("few-stacking", "`--rule stacking`, tuned on 60 films", FEW, FEW, option_rule="stacking"),
    Row(
        *("classifier", "a classifier as a member, and the stacked gate", DEMO, SECOND_OPINION),
        option_rule="stacking",
    ),
    Row(
        *("joint-threshold", "`tune --joint`: threshold and smallest component", DEMO, DEMO),
        rule="components",
        option_rule="threshold-components",
    ),
    Row("joint-triplet", "`tune --joint` with the triplet", DEMO, DEMO, option_rule="triplet-components"),
    Row(
        "few-joint-triplet",
        "`tune --joint` with the triplet, tuned on 60 films",
        FEW,
        FEW,
        option_rule="triplet-components",
    ),
    Row("select", "`select` among checkpoints and views", DEMO, SELECTED),
    Row("dice-positive", "`loss.dice_films: positive`", DEMO, POSITIVE_DICE),
    Row("bce-weight", "`loss.bce_positive_weight: 3`", DEMO, WEIGHTED),
    Row("crops", "`eval_image_size: 128` with `image_size: 96`", DEMO, CROPS),
    Row("group-norm", "`model.norm: group_ws`, from random weights", DEMO, GROUP_NORM),
    Row("distillation", "`distillation` from an ensemble of three networks", UNET_BEST, STUDENT_BEST),
    Row("distillation-flipped", "the same, flipped and not", UNET_FLIPPED, STUDENT_FLIPPED),
)
