"""The report: its figures, what it leaves out, and that it is one safe page."""

import base64
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from report_runs import Page, log_epochs, store

from pneumo_dist.inference.mask_commands import report
from pneumo_dist.inference.postprocess import apply_triplet, label_map
from pneumo_dist.inference.report import write_report
from pneumo_dist.inference.report_inputs import read_history
from pneumo_dist.inference.store import Predictions
from pneumo_dist.metrics import Triplet
from shards import rle
from shards.errors import InputError
from shards.table import Shards

ROOT = Path(__file__).parents[3]
FIXED = Triplet(0.5, 40, 0.4)


def fix_thresholds(predictions: Predictions, triplet: Triplet = FIXED, **changes: object) -> None:
    """Write thresholds.json as `tune` does, with a triplet of our choice."""
    content = {
        "objective": "dice",
        "triplet": vars(triplet),
        "dice_tuned_on_other_folds": {"mean": 0.4321, "low": 0.1234, "high": None},
        "predictions_sha256": predictions.digest,
    }
    path = predictions.folder.parent / "thresholds.json"
    path.write_text(json.dumps({**content, **changes}))


def naive_dices(predictions: Predictions, triplet: Triplet = FIXED) -> dict[str, float]:
    dices = {}
    for index, (row, p8) in enumerate(predictions):
        mask = apply_triplet(label_map(p8, predictions.grid(index)), triplet)
        truth = rle.decode(row["rle"], *mask.shape)
        total = int(mask.sum()) + int(truth.sum())
        dices[row["key"]] = 2 * int((mask & truth).sum()) / total if total else 1.0
    return dices


@pytest.fixture(scope="module")
def written(films: Shards, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Predictions, str]:
    """Runs with a report of `exp` on 12 out-of-fold and 7 holdout films, against `rival`; its predictions and page."""
    runs = tmp_path_factory.mktemp("runs")
    predictions = store(films, runs / "exp")
    fix_thresholds(predictions)
    store(films, runs / "exp", split="holdout", rows=range(7), noise=60)
    fix_thresholds(store(films, runs / "rival", noise=70, rows=range(2, 12)))
    store(films, runs / "rival", split="holdout", rows=range(7))
    log_epochs(runs / "exp")
    found = write_report(films, runs, "exp", against="rival")
    return runs, predictions, found.page.read_text()


def test_page_is_whole_and_asks_for_nothing_else(written: tuple[Path, Predictions, str]) -> None:
    page = Page(written[2])
    assert page.wrong == []
    assert not {"script", "link", "iframe", "object"} & page.tags
    for word in ("http:", "https:", "url(", "@import", "javascript", "onload"):
        assert word not in written[2], word
    assert len(page.pictures) == 10, "four plots and six films"
    for picture in page.pictures:
        head, _, body = str(picture["src"]).partition(",")
        assert head == "data:image/png;base64" and picture["alt"]
        decoded = cv2.imdecode(np.frombuffer(base64.b64decode(body), np.uint8), cv2.IMREAD_COLOR)
        assert decoded is not None and decoded.std() > 5
    assert 'name="viewport"' in written[2] and written[2].count("Not for diagnosis") == 2


def test_every_table_says_what_it_is(written: tuple[Path, Predictions, str]) -> None:
    text = written[2]
    assert text.count("<table>") == text.count("<caption>") >= 8
    assert all('scope="' in cell for cell in text.split("<th")[1:] if not cell.startswith("ead"))


def test_scores_are_those_of_the_masks(written: tuple[Path, Predictions, str]) -> None:
    _, predictions, text = written
    page, dices = Page(text), naive_dices(predictions)
    held_out = naive_dices(Predictions(written[0] / "exp" / "holdout" / "predictions"))
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


def test_holdout_stands_first_and_the_rest_is_marked(written: tuple[Path, Predictions, str]) -> None:
    page = Page(written[2])
    assert page.row("Measure") == ["Holdout", "Out of foldselection-biased"]
    assert page.row("Films (positive)")[0].startswith("7 (") and page.row("Films (positive)")[1] == "12 (6)"
    assert "7 held-out films" in " ".join(written[2].split())


def test_lesion_sensitivity_counts_touched_parts(written: tuple[Path, Predictions, str]) -> None:
    predictions, total, touched = written[1], 0, 0
    for index, (row, p8) in enumerate(predictions):
        mask = apply_triplet(label_map(p8, predictions.grid(index)), FIXED)
        count, parts = cv2.connectedComponents(rle.decode(row["rle"], *mask.shape), connectivity=8)
        total += count - 1
        touched += sum(bool(mask[parts == part].any()) for part in range(1, count))
    cell = Page(written[2]).row("Lesion sensitivity")[1]
    assert cell.startswith(f"{touched / total:.3f}") and cell.endswith(f"of {total} lesions")


def test_differences_are_of_the_films_of_both(written: tuple[Path, Predictions, str]) -> None:
    runs, predictions, text = written
    mine, other = naive_dices(predictions), naive_dices(Predictions(runs / "rival/oof/predictions"))
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
        count, row = views.count(view), page.row(view)
        if count < 10:
            assert row == ["fewer than 10", "fewer than 10", "–", "–", "–", "–"]
        else:
            assert row[0] == str(count) and row[2] != "–"
    assert "fewer than 10 positive films" in written[2]


def test_parts_counts_and_versions_are_named(written: tuple[Path, Predictions, str], films: Shards) -> None:
    page = Page(written[2])
    assert page.row("exp/fold1/step-00000010-abc.pt") == ["1", "0.500"]
    assert page.row("train")[:2] == ["12", "6"]
    assert page.row("SHA-256 of the predictions") == [written[1].digest]
    assert "image_size 96, hflip yes" in written[2]


def test_command_prints_what_scripts_read(films: Shards, tmp_path: Path) -> None:
    fix_thresholds(store(films, tmp_path / "demo"))
    log_epochs(tmp_path / "demo")
    arguments = ["--config", ROOT / "configs/demo.yaml", "--shards", films.folder, "--runs", tmp_path, "--by", "view"]
    result = CliRunner().invoke(report, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0
    dices = naive_dices(Predictions(tmp_path / "demo/oof/predictions"))
    mean = np.mean(list(dices.values()))
    lines = result.stdout.splitlines()
    assert lines[0] == f"out-of-fold mean Dice   {mean:.4f}  ({mean - 0.5:+.4f} over always empty)"
    assert lines[1].startswith("Dice on positive films  ") and lines[1].endswith("(6 of 12 films)")
    assert lines[2:4] == [
        "training speed          7.5 films/s (median over epochs)",
        "peak memory of a rank   512 MiB",
    ]
    assert lines[4:] == [f"report: {tmp_path / 'demo/report.html'}", f"overlays: {tmp_path / 'demo/overlays.png'}"]
    assert cv2.imread(str(tmp_path / "demo/overlays.png")).shape == (512, 1024, 3)
    page = Page((tmp_path / "demo/report.html").read_text())
    assert page.row("View") and not any(row and row[0] in ("Sex", "Age") for row in page.rows)


@pytest.mark.parametrize(
    ("changes", "says"), [(None, "is missing"), ({"predictions_sha256": "0" * 64}, "is out of date")]
)
def test_thresholds_of_other_predictions_are_not_taken(
    films: Shards, tmp_path: Path, changes: dict[str, object] | None, says: str
) -> None:
    predictions = store(films, tmp_path / "exp")
    if changes:
        fix_thresholds(predictions, **changes)
    found = write_report(films, tmp_path, "exp")
    assert says in found.page.read_text()
    assert found.score.dice > np.mean(list(naive_dices(predictions).values()))


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
    assert "There is no holdout prediction" in text and "No training logs" in text
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


def test_bad_input_names_the_mend(films: Shards, shapes: Shards, tmp_path: Path) -> None:
    store(films, tmp_path / "exp")
    store(films, tmp_path / "relabelled", rle="-1")
    store(shapes, tmp_path / "shapes")
    with pytest.raises(InputError, match=r"--by veiw: .* no such column; did you mean view\?"):
        write_report(films, tmp_path, "exp", by=["veiw"])
    with pytest.raises(InputError, match=r"has no film .*12 missing in all.*give the shards that were predicted"):
        write_report(shapes, tmp_path, "exp")
    with pytest.raises(InputError, match="--against exp: is the ensemble of the report itself"):
        write_report(films, tmp_path, "exp", against="exp")
    with pytest.raises(InputError, match=r"other/oof/predictions: no finished predictions; run"):
        write_report(films, tmp_path, "exp", against="other")
    with pytest.raises(InputError, match=r"has another label than in .*; predict both with the same shards"):
        write_report(films, tmp_path, "exp", against="relabelled")
    with pytest.raises(InputError, match=r"has no film in common"):
        write_report(films, tmp_path, "exp", against="shapes")
    assert not (tmp_path / "exp/report.html").exists()


def test_stages_stand_in_the_order_of_the_config(tmp_path: Path) -> None:
    for stage in ("warm", "fine", "fine-10", "fine-2", "aside"):
        log_epochs(tmp_path, stage=stage, folds=(1, 0))
    (tmp_path / "fold0/config.yaml").write_text("stages:\n- name: warm  # exp.yaml\n- name: fine\n")
    found = read_history(tmp_path)
    assert list(found) == ["warm", "fine", "fine-2", "fine-10", "aside"]
    assert list(found["fine"]) == ["fold0", "fold1"]
    shutil.rmtree(tmp_path / "fold0/fine")
    (tmp_path / "fold1/fine/metrics.jsonl").write_text('{"score": 0.1\n')
    with pytest.raises(InputError, match=r"fold1/fine/metrics\.jsonl: not valid JSON lines"):
        read_history(tmp_path)


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
