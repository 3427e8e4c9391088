"""The rows of benchmarks.quality: each compares two sides that differ in one option."""

from collections.abc import Mapping
from dataclasses import dataclass

from pneumo_dist.config.rules import RuleName


@dataclass(frozen=True)
class Side:
    """A config, and what is changed in it.

    Attributes:
        name: Name of the experiment, before its seed.
        dataset: Name of the films in quality_films.
        config: A shipped config.
        settings: Values of `--set`.
        teacher: Name of the side from whose maps it learns.
        tune: Options of `tune`.
        rule: The rule for the masks of the holdout.
    """

    name: str
    dataset: str
    config: str = "demo"
    settings: tuple[str, ...] = ()
    teacher: str | None = None
    tune: tuple[str, ...] = ()
    rule: RuleName = "triplet"


@dataclass(frozen=True)
class Row:
    """An option: its name, its text for the table, the sides without and with it, and its default."""

    name: str
    text: str
    without: Side
    option: Side
    default: str = "off"


# The demo's network for as many steps, each of eight films with labels. A moving average is on both sides of all rows,
# as the mean teacher needs it.
_FEW = ("global_batch=8", "micro_batch=8", "sample_rate=null", "epochs=100", "optim.ema_decay=0.98", "top_k=1")
# Eight films without labels more in each step.
_MIXED = (*_FEW, "global_batch=16", "micro_batch=16", "unlabelled.share=0.5")

SUPERVISED = Side("few", "few", settings=_FEW)
PSEUDO = Side("pseudo", "few", settings=_MIXED, teacher="few")
TEACHER = Side("mean-teacher", "few", settings=(*_MIXED, "unlabelled.mean_teacher.weight=10"))
BOTH = Side("both", "few", settings=(*_MIXED, "unlabelled.mean_teacher.weight=10"), teacher="few")

DEMO = Side("demo", "demo")
POSITIVES = Side("dice-positive", "demo", settings=("loss.dice_films=positive",))
WEIGHTED = Side("bce-weight", "demo", settings=("loss.bce_positive_weight=3",))

SIDES: Mapping[str, Side] = {side.name: side for side in (SUPERVISED, PSEUDO, TEACHER, BOTH, DEMO, POSITIVES, WEIGHTED)}
ROWS = (
    Row("pseudo", "`unlabelled.from`: pseudo-labels of 600 films beside 60 with labels", SUPERVISED, PSEUDO),
    Row("mean-teacher", "`unlabelled.mean_teacher` on the same 600 films", SUPERVISED, TEACHER),
    Row("both", "both together", SUPERVISED, BOTH),
    Row("dice-positive", "`loss.dice_films: positive`", DEMO, POSITIVES),
    Row("bce-weight", "`loss.bce_positive_weight: 3`", DEMO, WEIGHTED),
)
