from dataclasses import replace

import pytest
import torch

from vfmbench.errors import Status, UserError
from vfmbench.metrics.values import MetricValue, mean_value
from vfmbench.results.comparison import Entry, compare, tables_of
from vfmbench.results.paths import RunPaths
from vfmbench.results.schema import HIGHER, LOWER, SCHEMA_VERSION, MetricSpec, Section
from vfmbench.results.statistics import FEWEST_IMAGES, holm, paired_difference, paired_p_values

N = 60
DIFFICULTY = 5 * torch.randn(N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def per_image(name, shift, noise=0.3, seed=1):
    own = torch.randn(N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return mean_value(name, 20 + DIFFICULTY + shift + noise * (own - own.mean()), "settings")


def of_set(name, value, shift_of_replicates=0.0, seed=1, space=None):
    own = torch.randn(200, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    replicates = value + shift_of_replicates + 0.01 * own
    return MetricValue(name, value, value - 0.1, value + 0.1, N, feature_weights_sha256=space, replicates=replicates)


def coverage(per_image):
    """Of central intervals of ten samples."""
    return replace(mean_value("interval_coverage@pixel", per_image, "settings"), target=9 / 11)


def compared(runs, reference=None):
    comparison = compare("denoise", [Entry.of(run.identity.method, run) for run in runs], reference)
    headings = [entry.heading for entry in comparison.entries]
    return comparison, {row.name: dict(zip(headings, row.cells, strict=True)) for row in comparison.rows}


def marks(cells):
    return {heading: ("*" if cell.best else "") + cell.sign for heading, cell in cells.items()}


def test_best_and_not_significantly_worse_are_marked(make_run):
    runs = [
        make_run("best", [per_image("psnr", 0.30, seed=1)]),
        make_run("close", [per_image("psnr", 0.25, seed=2)]),
        make_run("worse", [per_image("psnr", -0.5, seed=3)]),
    ]
    _, cells = compared(runs)
    assert marks(cells["psnr"]) == {"best": "*", "close": "*", "worse": ""}
    _, cells = compared(runs, "close")
    assert marks(cells["psnr"]) == {"best": "*", "close": "*", "worse": "-"}
    _, cells = compared(runs, "worse")
    assert marks(cells["psnr"]) == {"best": "*+", "close": "*+", "worse": ""}


def test_less_is_better_for_errors(make_run):
    _, cells = compared([make_run("a", [per_image("crps@pixel", 0)]), make_run("b", [per_image("crps@pixel", 1, seed=2)])], "a")
    assert marks(cells["crps@pixel"]) == {"a": "*", "b": "-"}


def test_p_values_are_those_of_the_paired_test_with_holms_correction(make_run):
    shifts = {"a": 0.0, "b": 0.10, "c": 0.06, "d": -0.15}
    runs = [make_run(name, [per_image("ssim", shift, seed=k)]) for k, (name, shift) in enumerate(shifts.items())]
    _, cells = compared(runs, "a")
    values = {run.identity.method: run.per_image["ssim"] for run in runs}
    expected = {name: paired_difference(values[name], values["a"]) for name in "bcd"}
    corrected = dict(zip("bcd", holm([expected[name].p_value for name in "bcd"]), strict=True))
    for name in "bcd":
        difference = cells["ssim"][name].difference
        assert difference.value == pytest.approx(expected[name].difference)
        assert difference.p_value == expected[name].p_value
        assert difference.corrected == corrected[name]
        assert difference.interval() == (expected[name].low, expected[name].high)
    assert cells["ssim"]["a"].difference is None


def test_correction_takes_back_a_mark_that_one_test_would_give(make_run):
    """A difference with p of about 0.02, alone and among nine others."""
    candidates = {shift: make_run(f"b{shift}", [per_image("psnr", -shift / 100, seed=9)]) for shift in range(4, 16)}
    first = make_run("a", [per_image("psnr", 0.0, seed=8)])
    p_values = {
        shift: compared([first, run], "a")[1]["psnr"][f"b{shift}"].difference.p_value for shift, run in candidates.items()
    }
    chosen = next(shift for shift, p_value in p_values.items() if 0.01 < p_value < 0.04)
    assert marks(compared([first, candidates[chosen]], "a")[1]["psnr"])[f"b{chosen}"] == "-"
    others = [make_run(f"x{k}", [per_image("psnr", 0.0, seed=20 + k)]) for k in range(8)]
    assert compared([first, candidates[chosen], *others], "a")[1]["psnr"][f"b{chosen}"].sign == ""


def test_distance_from_the_target_decides(make_run):
    runs = [
        make_run("under", [of_set("spread_skill@pixel", 0.7, seed=1)]),
        make_run("right", [of_set("spread_skill@pixel", 1.02, seed=2)]),
        make_run("over", [of_set("spread_skill@pixel", 1.5, seed=3)]),
    ]
    comparison, cells = compared(runs, "over")
    assert marks(cells["spread_skill@pixel"]) == {"under": "+", "right": "*+", "over": ""}
    assert str(comparison.rows[0].direction) == "→ 1"
    assert cells["spread_skill@pixel"]["under"].difference.value == pytest.approx(0.3 - 0.5)


def test_coverage_is_better_nearer_to_its_level(make_run):
    generator = torch.Generator().manual_seed(0)
    shares = {"narrow": 0.6, "right": 0.82, "wide": 0.97}
    runs = [make_run(name, [coverage(mean + 0.02 * torch.rand(N, generator=generator))]) for name, mean in shares.items()]
    comparison, cells = compared(runs, "narrow")
    assert marks(cells["interval_coverage@pixel"]) == {"narrow": "", "right": "*+", "wide": "+"}
    assert comparison.rows[0].direction.target == pytest.approx(9 / 11)


def test_distances_of_means_differ_if_neither_their_difference_nor_their_sum_may_be_zero(make_run):
    """Coverages at 0.02 below and 0.03 above their level: the difference of the values is sure, that of the distances not."""
    own = torch.randn(2, N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    own = (own - own.mean(1, keepdim=True)) / own.std(1, keepdim=True)
    level = 9 / 11
    runs = [
        make_run(name, [coverage(level + shift + 0.05 * noise)])
        for name, shift, noise in zip(("below", "above"), (-0.02, 0.03), own, strict=True)
    ]
    _, cells = compared(runs, "below")
    assert marks(cells["interval_coverage@pixel"]) == {"below": "*", "above": "*"}
    difference = cells["interval_coverage@pixel"]["above"].difference
    below, above = (run.per_image["interval_coverage@pixel"] - level for run in runs)
    assert difference.value == pytest.approx(0.01)
    assert difference.p_value == max(paired_p_values([above + below, above - below]))
    assert difference.interval()[0] < 0 < difference.interval()[1]


def test_few_images_test_means_only(make_run):
    count = FEWEST_IMAGES - 1
    noise = 0.01 * torch.randn(2, count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    runs = [
        make_run(name, [mean_value(metric, shift + own, "") for metric in ("psnr", "residual")])
        for name, shift, own in zip("ab", (1.0, 2.0), noise, strict=True)
    ]
    _, cells = compared(runs, "b")
    assert marks(cells["psnr"]) == {"a": "-", "b": "*"}
    assert marks(cells["residual"]) == {"a": "", "b": ""}


def test_set_statistics_are_compared_on_equal_resamples_only(make_run):
    a = make_run("a", [of_set("fid@digitnet", 1.0), per_image("psnr", 0)])
    b = make_run("b", [of_set("fid@digitnet", 1.2, seed=2), per_image("psnr", 0)])
    elsewhere = make_run("c", [of_set("fid@digitnet", 1.3), per_image("psnr", 0)], index=range(1, N + 1))
    assert marks(compared([a, b], "a")[1]["fid@digitnet"]) == {"a": "*", "b": "-"}
    assert marks(compared([a, elsewhere], "a")[1]["fid@digitnet"]) == {"a": "", "c": ""}


def test_equal_statistics_are_ties(make_run):
    a, b = (make_run(name, [of_set("fid@digitnet", 1.0)]) for name in "ab")
    assert marks(compared([a, b], "a")[1]["fid@digitnet"]) == {"a": "*", "b": "*"}


def test_other_feature_weights_are_not_compared(make_run):
    a = make_run("a", [of_set("fid@digitnet", 1.0, space="1" * 64)])
    b = make_run("b", [of_set("fid@digitnet", 2.0, space="2" * 64)])
    comparison, cells = compared([a, b], "a")
    assert marks(cells["fid@digitnet"]) == {"a": "", "b": ""}
    assert any("different feature weights" in note for note in comparison.notes)


@pytest.mark.parametrize("change", [{"version": 2}, {"direction": LOWER}])
def test_other_versions_of_a_metric_are_not_compared(make_run, change):
    spec = MetricSpec(name="mine", direction=HIGHER)
    a = make_run("a", [per_image("mine", 0)], specs={"mine": spec})
    b = make_run("b", [per_image("mine", 9, seed=2)], specs={"mine": spec.model_copy(update=change)})
    comparison, cells = compared([a, b], "a")
    assert marks(cells["mine"]) == {"a": "", "b": ""}
    assert "mine: computed by different versions of the metric, and so not compared" in comparison.notes


def test_a_metric_that_moved_to_another_section_is_the_same_metric(make_run):
    specs = [MetricSpec(name="mine", direction=HIGHER), MetricSpec(name="mine", direction=HIGHER, section=Section.PRIOR)]
    runs = [
        make_run(name, [per_image("mine", shift)], specs={"mine": spec})
        for name, shift, spec in zip("ab", (0, 9), specs, strict=True)
    ]
    assert marks(compared(runs, "a")[1]["mine"]) == {"a": "", "b": "*+"}


def test_what_a_metric_says_of_itself_decides_and_not_its_name(make_run):
    specs = {
        "mine": MetricSpec(name="mine", section=Section.RECONSTRUCTION, direction=LOWER),
        "psnr": MetricSpec(name="psnr", section=Section.CALIBRATION, direction=LOWER),
        "hidden": MetricSpec(name="hidden", direction=LOWER, compared=False),
        "rare": MetricSpec(name="rare", direction=LOWER, occasional=True),
    }
    runs = [
        make_run(method, [*(per_image(name, shift, seed=seed) for name in ("psnr", "hidden", "mine")), of_zero], specs=specs)
        for method, shift, seed, of_zero in (("a", 0, 1, MetricValue("rare", 0.0)), ("b", 1, 2, MetricValue("rare", 0.0)))
    ]
    comparison, cells = compared(runs, "a")
    assert list(cells) == ["mine", "psnr"]
    assert [str(row.direction) for row in comparison.rows] == ["↓", "↓"]
    assert marks(cells["mine"]) == marks(cells["psnr"]) == {"a": "*", "b": "-"}


def test_without_direction_or_test_there_is_no_mark(make_run):
    values = [per_image("diversity@pixel", 0), per_image("my_metric", 0), MetricValue("mmd_paired@digitnet", 1.0, n=N)]
    _, cells = compared(
        [make_run("a", values), make_run("b", [*values[:2], MetricValue("mmd_paired@digitnet", 2.0, n=N)])], "a"
    )
    assert all(marks(row) == {"a": "", "b": ""} for row in cells.values())
    assert list(cells) == ["mmd_paired@digitnet", "diversity@pixel", "my_metric"]


def test_estimates_that_are_too_small_and_evaluations_that_nobody_made_have_no_row(make_run):
    names = ("crps@pixel", "crps_fair@pixel", "mmd@digitnet", "kid@digitnet", "kid_paired@digitnet")
    costs = {"nfe": 0.0, "network_vjps": 0.0, "decoder_vjps": 0.0, "encoder_forwards": 0.0}
    values = [*(per_image(name, 0) for name in names), *(MetricValue(name, value, n=3) for name, value in costs.items())]
    other = [*values[:-1], MetricValue("encoder_forwards", 2.0, n=3)]
    _, cells = compared([make_run("a", values), make_run("b", other)])
    costs_shown = ["nfe", "network_vjps", "encoder_forwards"]
    assert list(cells) == ["crps@pixel", "crps_fair@pixel", "kid_paired@digitnet", *costs_shown]
    assert cells["encoder_forwards"]["a"].row.value == 0


def test_warnings_of_settings_stand_below_the_table(make_run):
    def value(name, warning):
        return MetricValue(name, 1.0, n=N, settings=f"some network; {warning}; K=10 samples")

    other, few = "WARNING: x.pth is NOT the published y.pth", "WARNING: n = 3 images for d = 8 features"
    runs = [
        make_run("a", [value("fid@dino", other), value("kid_paired@dino", other), value("fid@digitnet", few)]),
        make_run("b", [value("fid@dino", other), value("kid_paired@dino", other), value("fid@digitnet", "fine")]),
        make_run("c", [per_image("psnr", 0)]),
    ]
    notes = compared(runs)[0].notes
    assert f"fid@dino, kid_paired@dino: {other}" in notes
    assert f"fid@digitnet (a): {few}" in notes
    assert sum("WARNING" in note for note in notes) == 2


def test_unfinished_runs_and_missing_values(make_run):
    missing = MetricValue("psnr", None, reason="no images")
    gone = MetricValue("lpips_alex", None, reason="no weights")
    runs = [
        make_run("a", [per_image("psnr", 0), gone]),
        make_run("b", [missing, per_image("ssim", 0), gone]),
        make_run("c", [per_image("psnr", 9)], status=Status.INTERRUPTED),
    ]
    comparison, cells = compared(runs, "c")
    assert comparison.reference is None
    assert [entry.status for entry in comparison.entries] == ["done", "done", "interrupted"]
    assert cells["psnr"]["c"].row is None
    assert cells["psnr"]["b"].row.reason == "no images"
    assert list(cells) == ["psnr", "ssim"]
    assert "missing: lpips_alex: no weights" in comparison.notes


def test_runs_of_different_images_are_in_different_tables(make_run, tmp_path):
    value = [per_image("psnr", 0)]
    for changes in (
        {},
        {"seed": 1},
        {"samples": 5},
        {"task": "hdr"},
        {"dataset_sha256": "e" * 64},
        {"task_options": {"std": 2}},
    ):
        for method in ("vfm", "pinv"):
            make_run(method, value, **changes)
    titles = [comparison.title for comparison in tables_of([tmp_path], None, None, None)]
    assert len(set(titles)) == len(titles) == 6
    assert sum("dataset_sha256=eeeeeeee" in title for title in titles) == 1
    assert sum("task_options.std=2" in title for title in titles) == 1
    assert all(len(comparison.entries) == 2 for comparison in tables_of([tmp_path], None, None, "vfm"))


def test_runs_of_one_method_are_told_apart(make_run, tmp_path):
    value = [per_image("psnr", 0)]
    runs = [make_run("vfm", value, options={"steps": steps, "projection": False}) for steps in (1, 4)]
    make_run("pinv", value)
    (comparison,) = tables_of([tmp_path], None, None, runs[1].hash)
    assert sorted(entry.heading for entry in comparison.entries) == ["pinv", "vfm steps=1", "vfm steps=4"]
    assert comparison.reference == "vfm steps=4"
    with pytest.raises(UserError, match="several runs of vfm"):
        tables_of([tmp_path], None, None, "vfm")
    make_run("pinv", value, weights_sha256={"flow": "f" * 64})
    headings = [entry.heading for entry in tables_of([tmp_path], None, ["pinv"], None)[0].entries]
    assert all(heading.startswith("pinv #") for heading in headings)


def test_selection_order_and_errors(make_run, tmp_path):
    for method in ("b", "a"):
        for task in ("denoise", "hdr"):
            make_run(method, [per_image("psnr", 0)], task=task, problem=task)
    (comparison,) = tables_of([tmp_path], ["hdr"], ["b", "a"], None)
    assert comparison.title.startswith("hdr")
    assert [entry.heading for entry in comparison.entries] == ["b", "a"]
    for arguments, message in (
        (([tmp_path], ["hrd"], None, None), "Did you mean 'hdr'"),
        (([tmp_path], None, ["c"], None), "Unknown method"),
        (([tmp_path], None, None, "c"), "no finished run of c"),
        (([tmp_path / "nowhere"], None, None, None), "not a folder"),
    ):
        with pytest.raises(UserError, match=message):
            tables_of(*arguments)
    make_run("a", [], out=tmp_path / "copy", num_images=N)
    with pytest.raises(UserError, match="lies in"):
        tables_of([tmp_path], None, None, None)


def test_folders_without_runs(tmp_path):
    with pytest.raises(UserError, match="no runs"):
        tables_of([tmp_path], None, None, None)
    RunPaths(tmp_path).samples.mkdir()
    RunPaths(tmp_path).config.write_text("a: 1")
    with pytest.raises(UserError, match="not a run's configuration"):
        tables_of([tmp_path], None, None, None)


def test_a_run_of_another_layout_is_refused(make_run, tmp_path):
    path = make_run("a", [per_image("psnr", 0)]).store.paths.config
    path.write_text(path.read_text().replace(f"schema_version: {SCHEMA_VERSION}", "schema_version: 1"))
    with pytest.raises(UserError, match=f"layout 1, this one reads {SCHEMA_VERSION}"):
        tables_of([tmp_path], None, None, None)


def test_other_measurements_are_told(make_run):
    runs = [make_run(name, [per_image("psnr", 0)]) for name in "ab"]
    for run, text in zip(runs, ('{"0": "x", "1": "y"}', '{"0": "x", "1": "z"}'), strict=True):
        run.store.paths.measurements.write_text(text)
    assert any("different measurements of 1 images" in note for note in compared(runs)[0].notes)
