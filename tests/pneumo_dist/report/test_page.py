"""The report is one safe page with the right figures."""

import base64
import json
import re
import shutil
from datetime import date
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from edited_dataset import edit_rows
from images import decode
from report_runs import Page, log_epochs, naive_dices, store, tune_run

from pneumo_dist.cli.masks import report
from pneumo_dist.config.rules import RuleName
from pneumo_dist.maps.store import Predictions
from pneumo_dist.report.boundaries import boundary_scores
from pneumo_dist.report.page import ReportOptions, write_report
from pneumo_dist.report.words import rule_sentences
from pneumo_dist.scoring.masks import Rule, apply_rule, apply_triplet, label_map
from pneumo_dist.scoring.triplet import Triplet
from pneumo_dist.thresholds.choose import in_words
from shards.dataset import rle
from shards.dataset.table import Shards
from shards.errors import InputError

ROOT = Path(__file__).parents[3]
FIXED = Rule(Triplet(0.5, 40, 0.4))


def fix_thresholds(predictions: Predictions, triplet: Triplet = FIXED.triplet, **changes: object) -> None:
    """Write thresholds.json as `tune` does, with a chosen triplet."""
    rule = {"triplet": vars(triplet), "smallest_part": 0, "gate": 0.0}
    parts = {"triplet": {"top": 0.5, "area": 0, "bottom": 0.5}, "smallest_part": 30, "gate": 0.0}
    content = {
        "objective": "dice",
        "triplet": vars(triplet),
        "dice_tuned_on_other_folds": {"mean": 0.4321, "low": 0.1234, "high": None},
        "rules": {
            "triplet": {"rule": rule, "dice": 0.4444, "called": 0.5},
            "components": {"rule": parts, "dice": 0.3333, "called": 0.25},
        },
        "components_curve": {"sizes": [0, 10, 30, 200], "dice": [0.2, 0.3, 0.3333, 0.1]},
        "predictions_sha256": predictions.digest,
    }
    path = predictions.folder.parent / "thresholds.json"
    path.write_text(json.dumps({**content, **changes}))


@pytest.fixture(scope="module")
def written(films: Shards, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Predictions, str]:
    """Return runs with a report of `exp` (12 out-of-fold, 7 holdout films) against `rival`, predictions and page."""
    runs = tmp_path_factory.mktemp("runs")
    predictions = store(films, runs / "exp")
    fix_thresholds(predictions)
    store(films, runs / "exp", split="holdout", rows=range(7), noise=60)
    fix_thresholds(store(films, runs / "rival", noise=70, rows=range(2, 12)))
    store(films, runs / "rival", split="holdout", rows=range(7))
    log_epochs(runs / "exp")
    found = write_report(films, runs, "exp", ReportOptions(against="rival", day=date(2026, 2, 28)))
    return runs, predictions, found.page.read_text()


def shown_films(predictions: Predictions) -> int:
    """Return the number of films on the page: all positive films, and up to four negative films with a mask."""
    positive = [str(row["rle"]) != "-1" for row in predictions.rows]
    wrong = [not p and dice < 1 for p, dice in zip(positive, naive_dices(predictions, FIXED).values(), strict=True)]
    assert 0 < sum(positive) <= 12
    return sum(positive) + min(4, sum(wrong))


def test_page_is_well_formed_and_self_contained(written: tuple[Path, Predictions, str]) -> None:
    page = Page(written[2])
    assert page.wrong == []
    assert not {"script", "link", "iframe", "object"} & page.tags
    for word in ("http:", "https:", "url(", "@import", "javascript", "onload"):
        assert word not in written[2], word
    runs = written[0] / "exp"
    films = sum(shown_films(Predictions(runs / split / "predictions")) for split in ("oof", "holdout"))
    kinds = {"png": 0, "jpeg": 0}
    for picture in page.pictures:
        head, _, body = str(picture["src"]).partition(",")
        assert picture["alt"]
        kinds[head.removeprefix("data:image/").removesuffix(";base64")] += 1
        assert decode(base64.b64decode(body), cv2.IMREAD_COLOR).std() > 5
    assert kinds == {"png": 6, "jpeg": films}, "curves, ranking, two calibrations, heat map, smallest component; films"
    assert 'name="viewport"' in written[2] and written[2].count("Not for diagnosis") == 2


def test_every_table_has_a_caption_and_scopes(written: tuple[Path, Predictions, str]) -> None:
    text = written[2]
    assert text.count("<table>") == text.count("<caption>") >= 8
    assert all('scope="' in cell for cell in text.split("<th")[1:] if not cell.startswith("ead"))


def test_scores_are_those_of_the_masks(written: tuple[Path, Predictions, str]) -> None:
    _, predictions, text = written
    page, dices = Page(text), naive_dices(predictions, FIXED)
    held_out = naive_dices(Predictions(written[0] / "exp" / "holdout" / "predictions"), FIXED)
    cells = page.row("Mean Dice")
    assert cells[0].startswith(f"{np.mean(list(held_out.values())):.3f}")
    assert cells[1].startswith(f"{np.mean(list(dices.values())):.3f}")
    assert page.row("… thresholds of the other folds") == ["–", "0.432"]
    folds = {row["key"]: row["fold"] for row in predictions.rows}
    means = []
    for fold in (0, 1):
        own = [dice for key, dice in dices.items() if folds[key] == fold]
        row = page.row(f"fold {fold}")
        assert row[0].startswith(f"{len(own)} (") and row[1].startswith(f"{np.mean(own):.3f}")
        means.append(float(np.mean(own)))
    assert page.row("mean of folds")[1].startswith(f"{np.mean(means):.3f}")
    assert page.row("mean of folds")[1].endswith(f"± {np.std(means, ddof=1):.3f}")


def test_calls_and_predictive_values_are_those_of_the_masks(written: tuple[Path, Predictions, str]) -> None:
    page = Page(written[2])
    for place, split in enumerate(("holdout", "oof")):
        predictions = Predictions(written[0] / "exp" / split / "predictions")
        pairs = []
        for index, (row, p8) in enumerate(predictions):
            mask = apply_triplet(label_map(p8, predictions.grid(index)), FIXED.triplet)
            pairs.append((row["rle"] != "-1", bool(mask.any())))
        tp, fn, fp, tn = (pairs.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False)))
        assert page.rows_of("with a pneumothorax")[place] == [f"{tp} TP", f"{fn} FN"]
        assert page.rows_of("without")[place] == [f"{fp} FP", f"{tn} TN"]
        for title, right, total in (("PPV", tp, tp + fp), ("NPV", tn, tn + fn)):
            assert page.row(title)[place].startswith(f"{right / total:.3f}" if total else "–")


def test_page_opens_with_title_date_data_set_and_contents(
    written: tuple[Path, Predictions, str], films: Shards
) -> None:
    _, predictions, text = written
    head = text.split("</header>")[0]
    assert "<title>exp: report on pneumothorax segmentation, 2026-02-28</title>" in head
    assert "<dt>Date</dt><dd>2026-02-28</dd>" in head and f"<dd>{films.folder.name}</dd>" in head
    links = re.findall(r'<a href="#([^"]+)">([^<]+)</a>', head)
    assert links == re.findall(r'<h2 id="([^"]+)">([^<]+)</h2>', text) and ("differences", "Against rival") in links
    assert rule_sentences(FIXED) in text
    assert "The image ids in\nthese files are those of the data set: SOP Instance UIDs or file names" in text
    assert predictions.rows[0]["image_id"] in (written[0] / "exp/films.csv").read_text()


def test_sizes_in_mm_are_not_guessed(written: tuple[Path, Predictions, str], films: Shards, tmp_path: Path) -> None:
    page, words = Page(written[2]), " ".join(written[2].split())
    assert page.row("HD95, mm") == page.row("NSD at 2 mm") == ["–", "–"]
    assert "0 of 7 holdout, 0 of 12 out of fold." in words and "are not known, and not guessed" in words
    folder = Path(shutil.copytree(films.folder, tmp_path / "spaced"))
    edit_rows(folder, lambda rows: [row.update(spacing_row=3.0, spacing_column=3.0) for row in rows])
    predictions = store(Shards(folder), tmp_path / "exp")
    fix_thresholds(predictions)
    text = write_report(Shards(folder), tmp_path, "exp").page.read_text()
    distances = []
    for index, (_, p8) in enumerate(predictions):
        truth, mask = predictions.label(index), apply_triplet(label_map(p8, predictions.grid(index)), FIXED.triplet)
        if truth.any() and mask.any():
            distances.append(boundary_scores(truth, mask, np.array([3.0, 3.0])))
    hd95, nsd = np.array(distances).T
    assert Page(text).row("HD95, mm")[0].startswith(f"{hd95.mean():.1f}")
    assert Page(text).row("HD95, mm")[0].endswith(f"({np.median(hd95):.1f})6 of 6 films")
    assert Page(text).row("NSD at 2 mm")[0].startswith(f"{nsd.mean():.3f}")
    assert "12 of 12 out of fold." in text and "not guessed" not in text
    best = max(predictions.rows, key=lambda row: naive_dices(predictions, FIXED)[row["key"]] * (row["rle"] != "-1"))
    pixels = int(predictions.label(predictions.rows.index(best)).sum())
    assert f"label {pixels:,}&nbsp;px ({pixels * 0.09:.{1 if pixels * 0.09 >= 10 else 2}f}&nbsp;cm²)" in text


def test_a_table_adds_subgroups(films: Shards, tmp_path: Path) -> None:
    fix_thresholds(store(films, tmp_path / "demo"))
    ids = films.column("image_id").tolist()
    table = tmp_path / "sites.csv"
    table.write_text(
        "image_id,site\n" + "".join(f"{each},{'<b>one' if n < 11 else 'two'}\n" for n, each in enumerate(ids))
    )
    arguments = ["--config", ROOT / "configs/demo.yaml", "--shards", films.folder, "--runs", tmp_path, "--table", table]
    result = CliRunner().invoke(report, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0
    text = (tmp_path / "demo/report.html").read_text()
    page = Page(text)
    assert page.row("Site") and page.row("View") and page.wrong == []
    assert page.row("<b>one")[0] == "11" and page.row("two")[0] == "fewer than 10"
    assert re.search(r"0\.\d{3} 0\.\d{3} to 0\.\d{3}", page.row("<b>one")[2]), "with an interval"


def test_holdout_comes_first_and_the_rest_is_marked_as_biased(written: tuple[Path, Predictions, str]) -> None:
    page = Page(written[2])
    assert page.row("Measure") == ["Holdout", "Out of foldselection-biased"]
    assert page.row("Films (positive)")[0].startswith("7 (") and page.row("Films (positive)")[1] == "12 (6)"
    assert "7 held-out films" in " ".join(written[2].split())


def test_lesion_sensitivity_counts_touched_lesions(written: tuple[Path, Predictions, str]) -> None:
    predictions, total, touched = written[1], 0, 0
    for index, (row, p8) in enumerate(predictions):
        mask = apply_triplet(label_map(p8, predictions.grid(index)), FIXED.triplet)
        count, parts = cv2.connectedComponents(rle.decode(row["rle"], *mask.shape), connectivity=8)
        total += count - 1
        touched += sum(bool(mask[parts == part].any()) for part in range(1, count))
    cell = Page(written[2]).row("Lesion sensitivity")[1]
    assert cell.startswith(f"{touched / total:.3f}") and cell.endswith(f"of {total} lesions")


def test_differences_cover_the_common_films(written: tuple[Path, Predictions, str]) -> None:
    runs, predictions, text = written
    mine, other = naive_dices(predictions, FIXED), naive_dices(Predictions(runs / "rival/oof/predictions"), FIXED)
    differences = [mine[key] - other[key] for key in other]
    row = Page(text).row("out of fold, all films")
    assert row[0] == "10" and row[1].startswith(f"{np.mean(differences):.4f}")
    signs = [sum(d > 1e-12 for d in differences), sum(abs(d) <= 1e-12 for d in differences)]
    assert [int(cell) for cell in row[2:5]] == [*signs, 10 - sum(signs)]
    assert Page(text).row("holdout, all films")[0] == "7"


def test_small_cells_are_not_shown(written: tuple[Path, Predictions, str], films: Shards) -> None:
    page = Page(written[2])
    views = films.column("view").tolist()
    for view in sorted(set(views)):
        *held_out, row = page.rows_of(view)
        assert held_out == [["fewer than 10", "fewer than 10", "–", "–", "–", "–"]] * (view in views[:7])
        if views.count(view) < 10:
            assert row == ["fewer than 10", "fewer than 10", "–", "–", "–", "–"]
        else:
            assert row[0] == str(views.count(view)) and row[2] != "–"
    assert written[2].count("fewer than 10 positive films") == 2


def section_of(text: str, section: str) -> str:
    """Return the section with this id."""
    return text.split(f'<h2 id="{section}">')[1].split("</section>")[0]


def test_holdout_and_out_of_fold_films_are_both_shown(films: Shards, tmp_path: Path) -> None:
    fix_thresholds(store(films, tmp_path / "exp"))
    held_out = store(films, tmp_path / "exp", split="holdout", noise=60, shift=6)
    text = write_report(films, tmp_path, "exp", ReportOptions(by=["has_mask"])).page.read_text()
    for section in ("sizes", "subgroups", "calibration", "films"):
        part = section_of(text, section)
        assert part.index("<h3>Holdout</h3>") < part.index('<h3>Out of fold <span class="range">selection-biased')
    page, dices = Page(text), naive_dices(held_out, FIXED)
    # Six films of each kind: no cell has ten.
    assert page.rows_of("yes") == [["fewer than 10", "fewer than 10", "–", "–", "–", "–"]] * 2
    assert page.rows_of("calibrated on the out-of-fold films") != page.rows_of("calibrated on the other folds")
    best = max(dice for key, dice in dices.items() if key in positives(held_out))
    assert f"<b>Dice {best:.2f}</b>" in section_of(text, "films").split("Out of fold")[0]
    fix_thresholds(store(films, tmp_path / "alone"))
    alone = write_report(films, tmp_path, "alone").page.read_text()
    assert "<h3>Holdout</h3>" not in alone and "<h3>Out of fold" in alone


def positives(predictions: Predictions) -> set[str]:
    return {row["key"] for row in predictions.rows if row["rle"] != "-1"}


def test_holdout_of_other_shards_is_an_input_error(films: Shards, shapes: Shards, tmp_path: Path) -> None:
    store(films, tmp_path / "exp")
    store(shapes, tmp_path / "exp", split="holdout")
    with pytest.raises(InputError, match=r"has no film .* of .*exp/holdout/predictions \(4 missing in all\)"):
        write_report(films, tmp_path, "exp")
    assert not (tmp_path / "exp/report.html").exists()


@pytest.fixture(scope="module")
def classed(films: Shards, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Predictions]:
    """A tuned run whose specks and class probabilities make all rules differ."""
    runs = tmp_path_factory.mktemp("classed")
    predictions = store(films, runs / "exp", specks=0.001, wrong=25, with_classes=True)
    store(films, runs / "exp", split="holdout", rows=range(8), specks=0.001, wrong=25, with_classes=True)
    tune_run(predictions)
    return runs, predictions


@pytest.mark.parametrize("name", [None, "triplet", "components", "gate", "stacking"])
def test_figures_are_those_of_the_masks_under_the_rule(
    films: Shards, classed: tuple[Path, Predictions], name: RuleName | None
) -> None:
    runs, predictions = classed
    rules = tune_run(predictions).rules
    found = write_report(films, runs, "exp", ReportOptions(rule=name))
    text = found.page.read_text()
    page, rule = Page(text), rules[name or "triplet"].rule
    dices = naive_dices(predictions, rule)
    held_out = naive_dices(Predictions(runs / "exp/holdout/predictions"), rule)
    assert found.retuned is None and found.score.dice == pytest.approx(np.mean(list(dices.values())), abs=1e-12)
    cells = page.row("Mean Dice")
    assert cells[0].startswith(f"{np.mean(list(held_out.values())):.3f}")
    assert cells[1].startswith(f"{np.mean(list(dices.values())):.3f}")
    assert f"Rule for masks: {in_words(rule)} (thresholds.json)." in text.replace("\n", " ")
    assert (page.row("… thresholds of the other folds")[1] == "–") == (name in ("components", "gate"))
    touched, total = 0, 0
    for index, (row, p8) in enumerate(predictions):
        mask = apply_rule(label_map(p8, predictions.grid(index)), rule, row["class_probability"])
        count, parts = cv2.connectedComponents(rle.decode(row["rle"], *mask.shape), connectivity=8)
        total += count - 1
        touched += sum(bool(mask[parts == part].any()) for part in range(1, count))
    assert page.row("Lesion sensitivity")[1].startswith(f"{touched / total:.3f}")


def test_all_tuned_rules_are_shown_with_the_curve(films: Shards, classed: tuple[Path, Predictions]) -> None:
    runs, predictions = classed
    rules = tune_run(predictions).rules
    assert len({round(found.dice, 4) for found in rules.values()}) == 4, "the rules differ"
    assert rules["components"].rule.smallest_part > 1 and rules["gate"].rule.gate > 0
    text = write_report(films, runs, "exp", ReportOptions(rule="components")).page.read_text()
    part = section_of(text, "thresholds")
    titles = (
        *("triplet", "fixed threshold without small components", "triplet with the classification gate"),
        "fixed threshold with the stacked gate",
    )
    for title, found in zip(titles, rules.values(), strict=True):
        row = next(row for row in Page(part).rows if row and row[0] == title)
        assert row[1] == in_words(found.rule)
        mean = np.mean(list(naive_dices(predictions, found.rule).values()))
        assert row[2] == f"{mean:.4f}"
        unseen = tune_run(predictions).unseen if title == "triplet" else found.unseen
        assert row[4] == ("–" if unseen is None else f"{unseen.mean:.4f}")
        assert (f'<tr class="whole"><th scope="row">{title}</th>' in part) == (title == titles[1])
    assert part.count("<img") == 2 and 'alt="Mean Dice by the size of the smallest component kept"' in part


def test_config_own_thresholds_come_first(films: Shards, classed: tuple[Path, Predictions], tmp_path: Path) -> None:
    runs, predictions = classed
    config = tmp_path / "exp.yaml"
    fixed = "thresholds: {top: 0.6, area: 50, bottom: 0.45}\nsmallest_part: 12\n"
    config.write_text(f"name: exp\nmembers: [{{experiment: exp}}]\n{fixed}")
    own = Rule(Triplet(0.6, 50, 0.45), smallest_part=12)
    for options, rule in (([], own), (["--rule", "triplet"], tune_run(predictions).rules["triplet"].rule)):
        arguments = ["--config", config, "--shards", films.folder, "--runs", runs, *options]
        result = CliRunner().invoke(report, [str(argument) for argument in arguments], catch_exceptions=False)
        mean = np.mean(list(naive_dices(predictions, rule).values()))
        assert result.stdout.startswith(f"out-of-fold mean Dice   {mean:.4f} ")
        text = (runs / "exp/report.html").read_text()
        assert ("from the config" in section_of(text, "thresholds")) == (rule == own)
        assert ("the epochs and\nthe top-k checkpoints were chosen" in text) == (rule == own)


def test_rule_without_its_data_is_an_input_error(films: Shards, tmp_path: Path) -> None:
    tune_run(store(films, tmp_path / "exp"))
    with pytest.raises(InputError, match=r"thresholds\.json: has no rule gate, which needs a classification head"):
        write_report(films, tmp_path, "exp", ReportOptions(rule="gate"))
    tune_run(store(films, tmp_path / "head", with_classes=True, wrong=25))
    store(films, tmp_path / "head", split="holdout")
    with pytest.raises(InputError, match=r"head/holdout/predictions: no class probability for the gate"):
        write_report(films, tmp_path, "head", ReportOptions(rule="gate"))
    assert not list(tmp_path.rglob("report.html")) and not list(tmp_path.rglob("overlays.png"))


def test_networks_counts_and_versions_are_named(written: tuple[Path, Predictions, str], films: Shards) -> None:
    page = Page(written[2])
    assert page.row("exp/fold1/step-00000010-abc.pt") == ["1", "0.500"]
    assert page.row("train")[:2] == ["12", "6"]
    assert page.row("SHA-256 of the predictions") == [written[1].digest]
    assert "image_size 96, hflip yes" in written[2]


def test_command_prints_figures_for_scripts(films: Shards, tmp_path: Path) -> None:
    fix_thresholds(store(films, tmp_path / "demo"))
    log_epochs(tmp_path / "demo")
    arguments = ["--config", ROOT / "configs/demo.yaml", "--shards", films.folder, "--runs", tmp_path, "--by", "view"]
    result = CliRunner().invoke(report, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0
    dices = naive_dices(Predictions(tmp_path / "demo/oof/predictions"), FIXED)
    mean = np.mean(list(dices.values()))
    lines = result.stdout.splitlines()
    assert lines[0] == f"out-of-fold mean Dice   {mean:.4f}  ({mean - 0.5:+.4f} over always empty)"
    assert lines[1].startswith("Dice on positive films  ") and lines[1].endswith("(6 of 12 films)")
    assert lines[2:4] == [
        "training speed          7.5 films/s (median over epochs)",
        "peak memory of a rank   512 MiB",
    ]
    names = {"report": "report.html", "overlays": "overlays.png", "films": "films.csv"}
    assert lines[4:] == [f"{kind}: {tmp_path / 'demo' / name}" for kind, name in names.items()]
    sheet = decode((tmp_path / "demo/overlays.png").read_bytes(), cv2.IMREAD_COLOR)
    assert sheet.shape[0] > 512 and sheet.shape[1] > 1024, "rows of four films with captions"
    assert (tmp_path / "demo/films.csv").read_text().count("\n") == 13
    page = Page((tmp_path / "demo/report.html").read_text())
    assert page.row("View") and not any(row and row[0] in ("Sex", "Age") for row in page.rows)


@pytest.mark.parametrize(
    ("changes", "says"), [(None, "is missing"), ({"predictions_sha256": "0" * 64}, "is out of date")]
)
def test_thresholds_of_other_predictions_are_not_used(
    films: Shards, tmp_path: Path, changes: dict[str, Any] | None, says: str
) -> None:
    predictions = store(films, tmp_path / "exp")
    if changes:
        fix_thresholds(predictions, **changes)
    found = write_report(films, tmp_path, "exp")
    assert says in found.page.read_text()
    assert found.score.dice > np.mean(list(naive_dices(predictions, FIXED).values()))


@pytest.mark.parametrize("text", ["{", "[]", "DIGEST"])
def test_damaged_thresholds_are_an_input_error(films: Shards, tmp_path: Path, text: str) -> None:
    predictions = store(films, tmp_path / "exp")
    content = json.dumps({"predictions_sha256": predictions.digest}) if text == "DIGEST" else text
    (tmp_path / "exp/oof/thresholds.json").write_text(content)
    with pytest.raises(InputError, match=r"thresholds\.json: not a thresholds file"):
        write_report(films, tmp_path, "exp")


def test_one_fold_of_films(films: Shards, tmp_path: Path) -> None:
    rows = np.flatnonzero(films.column("fold") == 0).tolist()
    store(films, tmp_path / "exp", rows=rows)
    text = write_report(films, tmp_path, "exp").page.read_text()
    assert Page(text).wrong == []
    assert "Calibration needs at least two folds" in text and "mean of folds" not in text
    assert "There are no holdout predictions" in text and "No training logs" in text
    assert Page(text).row("… thresholds of the other folds") == ["–"]


def test_films_that_are_all_negative(films: Shards, tmp_path: Path) -> None:
    predictions = store(films, tmp_path / "exp", rle="-1")
    fix_thresholds(predictions, Triplet(0.5, 10, 0.4))
    found = write_report(films, tmp_path, "exp")
    page = Page(found.page.read_text())
    assert page.wrong == []
    assert page.row("Films (positive)") == ["12 (0)"]
    assert page.row("AUROC") == page.row("Sensitivity") == page.row("Dice on positive films") == ["–"]
    assert "largest false-positive area" in found.page.read_text()
    assert "Best positive films" not in found.page.read_text()
    pixels = [
        apply_triplet(label_map(p8, predictions.grid(i)), Triplet(0.5, 10, 0.4)).sum()
        for i, (_, p8) in enumerate(predictions)
    ]
    expected = f"{np.mean(pixels):,.0f} ({np.median(pixels):,.0f})"
    assert page.row("False-positive area on negative films") == [expected]
    assert cv2.imread(str(found.overlays)) is not None


@pytest.mark.parametrize("is_positive", [True, False])
def test_a_single_film(films: Shards, tmp_path: Path, is_positive: bool) -> None:
    row = int(np.flatnonzero(films.column("has_mask") == is_positive)[0])
    store(films, tmp_path / "exp", rows=[row])
    page = Page(write_report(films, tmp_path, "exp").page.read_text())
    assert page.wrong == []
    assert page.row("Films (positive)") == [f"1 ({int(is_positive)})"]
    assert page.row("Mean Dice")[0].replace(".", "").isdigit(), "one film has no interval"


def test_texts_are_escaped(films: Shards, tmp_path: Path) -> None:
    name = "<script>alert(1)<&\"'"
    store(films, tmp_path / name, image_id='<img src=x onerror="alert(2)">')
    log_epochs(tmp_path / name, stage="<b>stage")
    page = Page(write_report(films, tmp_path, name).page.read_text())
    assert page.wrong == [] and "script" not in page.tags
    assert all(str(picture["src"]).startswith("data:") for picture in page.pictures)
    assert "&lt;b&gt;stage" in (tmp_path / name / "report.html").read_text()


def test_bad_input_names_the_fix(films: Shards, shapes: Shards, tmp_path: Path) -> None:
    store(films, tmp_path / "exp")
    store(films, tmp_path / "relabelled", rle="-1")
    store(shapes, tmp_path / "shapes")
    with pytest.raises(InputError, match=r"--by veiw: .* no such column; did you mean view\?"):
        write_report(films, tmp_path, "exp", ReportOptions(by=["veiw"]))
    with pytest.raises(InputError, match=r"has no film .*12 missing in all.*give the shards that were predicted"):
        write_report(shapes, tmp_path, "exp")
    with pytest.raises(InputError, match="--against exp: is the ensemble of the report itself"):
        write_report(films, tmp_path, "exp", ReportOptions(against="exp"))
    with pytest.raises(InputError, match=r"other/oof/predictions: no finished predictions; run"):
        write_report(films, tmp_path, "exp", ReportOptions(against="other"))
    with pytest.raises(InputError, match=r"has a different label than in .*; predict both with the same shards"):
        write_report(films, tmp_path, "exp", ReportOptions(against="relabelled"))
    with pytest.raises(InputError, match=r"has no film in common"):
        write_report(films, tmp_path, "exp", ReportOptions(against="shapes"))
    with pytest.raises(InputError, match=r"--table .*none\.csv: cannot be read"):
        write_report(films, tmp_path, "exp", ReportOptions(table=tmp_path / "none.csv"))
    assert not (tmp_path / "exp/report.html").exists()


def test_an_ensembles_curves_are_those_of_its_experiments(films: Shards, tmp_path: Path) -> None:
    predictions = store(films, tmp_path / "one")
    log_epochs(tmp_path / "one")
    log_epochs(tmp_path / "two", stage="late")
    shutil.copytree(tmp_path / "one/oof", tmp_path / "both/oof")
    manifest = json.loads((predictions.folder / "manifest.json").read_text())
    manifest["parts"].append({"name": "two/fold0/step-00000020-def.pt", "weight": 0.25, "fold": None})
    (tmp_path / "both/oof/predictions/manifest.json").write_text(json.dumps(manifest))
    text = write_report(films, tmp_path, "both").page.read_text()
    assert "one, stage only" in text and "two, stage late" in text
    assert Page(text).row("two/fold0/step-00000020-def.pt") == ["–", "0.250"]


def test_no_column_name_or_value_is_markup(films: Shards, tmp_path: Path) -> None:
    """Texts of a table, of the networks and of another run: markup, attributes, templates and mathematics."""
    bad = "\"'><script>alert(1)</script>{{ 7*7 }}${7*7}$\\frac{"
    folder = Path(shutil.copytree(films.folder, tmp_path / "shards"))
    edit_rows(folder, lambda rows: [row.update(view=f"{bad}{number % 2}", sex=bad) for number, row in enumerate(rows)])
    shards, rival = Shards(folder), "rival<script>"
    for name in ("exp", rival):
        store(shards, tmp_path / name, image_id=bad[:60])
    manifest = tmp_path / "exp/oof/predictions/manifest.json"
    content = json.loads(manifest.read_text())
    content["parts"] = [{"name": f"{bad}/fold0/step-1.pt", "weight": 1.0, "fold": 0}]
    manifest.write_text(json.dumps(content))
    log_epochs(tmp_path / "exp", stage="stage $\\frac{")
    (tmp_path / "exp/fold0").rename(tmp_path / "exp/fold$\\frac{")
    written = write_report(shards, tmp_path, "exp", ReportOptions(against=rival, by=("view", "sex")))
    text = written.page.read_text()
    page = Page(text)
    assert page.wrong == [] and "script" not in page.tags
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;{{ 7*7 }}") >= 4 and "49" not in text.split("<body>")[0]
    assert all(set(picture) == {"src", "alt"} for picture in page.pictures)
    assert "on" not in {name[:2] for picture in page.pictures for name in picture}
