from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from i2i_lightning.commands import sweep_report
from i2i_lightning.sweeps import charts, tables
from i2i_lightning.sweeps.page import page
from i2i_lightning.sweeps.strips import newest_preview, strips
from i2i_lightning.sweeps.variants import read_sweep

from .conftest import PX, MakeRun, report, write_grid

VOID = {"meta", "link", "img", "br", "line", "circle", "polyline", "path"}


class Page(HTMLParser):
    """Checks that tags nest; collects tables by their class, addresses and words."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == [], self.open
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        named = dict(attrs)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.rows = self.tables.setdefault(named["class"], [])
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


@pytest.fixture
def ablation(make_run: MakeRun, tmp_path: Path) -> Path:
    """L1 blurs, the GAN drifts, both do neither; one run is under way, one has failed."""
    number = 0
    figures = {"l1": (0.75, 0.30, 12.0), "cgan": (0.55, 1.05, 25.0), "l1+cgan": (0.72, 0.90, 15.0)}
    for variant, (iou, sharpness, error) in figures.items():
        for seed in (1, 2):
            shift = 0.01 if seed == 2 else -0.01
            made = report(iou + shift, sharpness + shift, error)
            make_run(
                str(number), f"variant={variant}", f"seed={seed}", figures=made, level=60 * len(variant) % 250
            )
            number += 1
    make_run("6", "variant=gan", "seed=1", values=(0.7,), epochs=2, finished=False)
    failed = tmp_path / "sweep" / "7"
    failed.mkdir()
    failed.joinpath("failure.json").write_text(
        json.dumps({"error": "no <room> left", "overrides": ["variant=gan", "seed=2"]})
    )
    return tmp_path / "sweep"


def test_the_page_of_an_ablation(ablation: Path) -> None:
    html = page(read_sweep(ablation), ablation)
    shown = Page(html)
    for address in shown.addresses:
        assert address.startswith("data:") or (ablation / address).is_file(), address
    assert not re.search(r"https?://|@import|url\(|<script", html)
    table = shown.tables["variants"]
    assert table[0][:5] == ["", "variant", "seeds", "judge IoU ↑", "landmark error ↓"]
    assert [row[0] for row in table[1:]] == ["1", "2", "3", "4", "", ""]
    assert [row[1] for row in table[1:5]] == ["l1", "l1+cgan", "cgan", "gan 1 running, 1 failed"]
    assert table[1][3] == "0.750 ± 0.014"  # of 0.74 and 0.76
    assert table[4][3] == "–"
    sharp = table[0].index("sharpness → 1")
    assert [row[sharp] for row in table[1:4]] == ["0.300 ± 0.014", "0.900 ± 0.014", "1.050 ± 0.014"]
    assert table[5][1:4] == ["real pictures", "", "0.800"]
    assert "<td class='best'>1.050<small> ± 0.014</small></td>" in html  # nearest to 1, by ratio
    runs = shown.tables["variants runs"]
    assert [row[3] for row in runs[1:]] == ["finished"] * 6 + ["running", "failed"]
    assert runs[8][-1] == "no <room> left"
    assert runs[7][4] == "1 of 2"
    assert "<a href='0/index.html'>0</a>" in html
    for words in ("Drift and blur", "held out", "6 finished, 1 running, 1 failed", "Terms of the training"):
        assert words in shown.text, words
    # A column for each variant, between inputs and targets.
    strip = shown.tables["film strip"]
    assert strip[0] == [
        "input",
        "",
        "l1seed 1, epoch 2",
        "cganseed 1, epoch 2",
        "l1+cganseed 1, epoch 2",
        "ganseed 1, epoch 1",
        "",
        "target",
    ]
    assert len(strip) == 4
    assert html == page(read_sweep(ablation), ablation)  # the same bytes each time


def test_pictures_come_back_as_the_pixels_that_were_drawn(ablation: Path) -> None:
    found = newest_preview(ablation / "0")
    assert found is not None
    assert (found.epoch, found.columns) == (2, ["input", "output", "target"])
    for row, (name, tiles) in enumerate(found.rows.items()):
        assert name == f"face_{row}.png"
        assert {tile.size for tile in tiles.values()} == {(PX, PX)}
        assert np.unique(np.asarray(tiles["output"])).tolist() == [120]
        assert np.unique(np.asarray(tiles["input"])).tolist() == [40 + row]
    html = page(read_sweep(ablation), ablation)
    picture = re.findall(r"src='data:image/(?:webp|jpeg);base64,([^']+)'", html)[1]
    level = np.asarray(Image.open(io.BytesIO(b64decode(picture))).convert("RGB")).mean()
    assert level == pytest.approx(120, abs=3)


def test_strips_of_two_ways_and_of_runs_that_lack_some(tmp_path: Path) -> None:
    ways = ("input a", "output b", "cycle a", "input b", "output a", "cycle b")
    write_grid(tmp_path / "0/images/epoch_0009.png", 9, 2, ways)
    write_grid(tmp_path / "1/images/epoch_0010.png", 10, 3, ways)
    (tmp_path / "1/images/epoch_0011.png").write_bytes(b"\x89PNG half of a file")
    Image.new("RGB", (9, 9)).save(tmp_path / "1/images/epoch_0012.png")  # of an older version
    previews = [newest_preview(tmp_path / name) for name in ("0", "1", "2")]
    assert [preview and preview.epoch for preview in previews] == [9, 10, None]
    there, back = strips(previews, max_rows=6)
    assert (there.title, there.source, there.truth) == ("output b", "input a", None)
    assert (back.title, back.source) == ("output a", "input b")
    assert there.names == ["face_0.png", "face_1.png"]
    assert [[picture is not None for picture in column] for column in there.outputs] == [
        [True, True],
        [True, True],
        [False, False],
    ]
    assert strips([None], 3) == []


def test_strips_of_pictures_from_nothing(make_run: MakeRun, tmp_path: Path) -> None:
    for number in range(2):
        folder = make_run(str(number), f"loss.gan_mode={number}", level=None)
        write_grid(folder / "images" / "epoch_0002.png", 9, 2, ("output",))
    shown = Page(page(read_sweep(tmp_path / "sweep"), tmp_path))
    assert shown.tables["film strip"] == [["gan_mode 0", "gan_mode 1"], ["", ""], ["", ""]]


def test_what_reads_as_the_best_is_shown_as_the_best(make_run: MakeRun, tmp_path: Path) -> None:
    """Of two means that are the same in the digits shown, bold for one would say what nobody can see."""
    for number, iou in enumerate((0.71623, 0.71585, 0.7104)):
        make_run(str(number), f"variant={number}", figures=report(iou, 0.9, 12.0 + number))
    sweep = read_sweep(tmp_path / "sweep")
    html = page(sweep, tmp_path)
    assert html.count("<td class='best'>0.716</td>") == 2
    assert "<td>0.710</td>" in html
    assert html.count("<td class='best'>12.00</td>") == 1
    assert tables.markdown(sweep).count("**0.716**") == 2


def test_a_label_is_not_the_name_of_its_setting(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("0", "variant=a", "loss.lambda_l1=1")
    make_run("1", "variant=b", "loss.lambda_l1=2")
    sweep = read_sweep(tmp_path / "sweep")
    head = ["", "label", "variant", "loss.lambda_l1"]
    assert Page(page(sweep, tmp_path)).tables["variants"][0][:4] == head
    (line,) = [line for line in tables.markdown(sweep).splitlines() if line.startswith("|     |")]
    assert [cell.strip() for cell in line.split("|")[1:5]] == head


def test_the_recorded_page_stands_alone_and_shows_what_is_said_of_it(checkout: Path) -> None:
    record = checkout / "benchmarks" / "results" / "pix2pix_losses_toy_cpu"
    shown = Page((record / "report.html").read_text(encoding="utf-8"))
    assert all(address.startswith("data:") for address in shown.addresses), "the runs are not in the record"
    assert shown.tables["film strip"][0][-1] == "target"
    means = {row["label"]: row for row in csv.DictReader((record / "report.csv").open(encoding="utf-8"))}
    iou, sharpness = (
        {label: float(row[name]) for label, row in means.items()} for name in ("judge_iou", "sharpness")
    )
    assert min(iou["l1"], iou["l1+gan"], iou["l1+cgan"]) > max(iou["gan"], iou["cgan"]) + 0.1, "drifts"
    assert sharpness["l1"] < min(value for label, value in sharpness.items() if label != "l1"), "blurs"
    by_label = {row[1]: row for row in shown.tables["variants"][1:]}
    for label, row in means.items():
        assert by_label[label][3].startswith(f"{float(row['judge_iou']):.3f} ±")


def test_tables(ablation: Path) -> None:
    sweep = read_sweep(ablation)
    rows = list(csv.DictReader(io.StringIO(tables.variants_csv(sweep))))
    assert [row["label"] for row in rows] == ["l1", "l1+cgan", "cgan", "gan"]
    assert float(rows[0]["judge_iou"]) == pytest.approx(0.75)
    assert float(rows[0]["judge_iou_std"]) == pytest.approx(0.02 / 2**0.5, rel=1e-5)
    assert (rows[3]["judge_iou"], rows[3]["state"], rows[3]["val/l1"]) == ("", "1 running, 1 failed", "0.7")
    runs = list(csv.DictReader(io.StringIO(tables.runs_csv(sweep))))
    assert [row["run"] for row in runs] == [str(number) for number in range(8)]
    assert (runs[7]["state"], runs[7]["reason"]) == ("failed", "no <room> left")
    assert (runs[1]["seed"], runs[1]["variant"], runs[1]["judge_iou"]) == ("2", "l1", "0.76")
    text = tables.markdown(sweep)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(line) for line in lines}) == 1
    assert "| 1   | l1 " in lines[2]
    assert "**1.050 ± 0.014**" in text
    assert "- `7`: failed, epoch 0: no <room> left" in text
    assert "- `6`: running, epoch 1 of 2" in text


def test_many_variants_share_a_grey(make_run: MakeRun, tmp_path: Path) -> None:
    for number in range(12):
        make_run(str(number), f"loss.lambda_l1={number}", values=(1.0, number / 10), level=None)
    html = page(read_sweep(tmp_path / "sweep"), tmp_path)
    shown = Page(html)
    assert "4 others" in shown.text
    assert "film strip" not in shown.tables
    # By val/l1 the first ones are the best: they have the colours.
    colours = re.findall(r"<i class='swatch (\w+)'></i>lambda_l1 (\d+)</th>", html)
    assert [(int(number), colour) for colour, number in colours] == [
        (number, f"c{number}" if number < 8 else "rest") for number in range(12)
    ]
    assert all(address.startswith(("data:", "sweep/")) for address in shown.addresses)


def test_a_study_shows_its_trials(make_run: MakeRun, tmp_path: Path) -> None:
    trials = []
    for number, value in enumerate((0.5, 0.3, 0.4)):
        make_run(str(number), f"loss.lambda_l1={10**number}", "loss.gan_mode=lsgan", values=(0.9, value))
        params = {"loss.lambda_l1": 10.0**number, "loss.gan_mode": "lsgan"}
        trials.append({"number": number, "state": "complete", "value": value, "params": params})
    study = {"monitor": "val/l1", "direction": "minimize", "trials_wanted": 4, "trials": trials}
    (tmp_path / "sweep" / "study.json").write_text(json.dumps(study))
    shown = Page(page(read_sweep(tmp_path / "sweep"), tmp_path / "sweep"))
    for words in ("best val L1 so far", "val L1 ↓ by trial", "val L1 ↓ by loss.lambda_l1", "3/4"):
        assert words in shown.text, words
    assert "by loss.gan_mode" not in shown.text  # no number


def test_charts_are_drawn_where_they_belong() -> None:
    svg = charts.line_chart("x", [charts.Line("a", "c0", [(0, 0.0), (1, 1.0), (2, 0.5)])])
    found = re.search(r"points='([^']*)'", svg)
    assert found is not None
    (x0, y0), (x1, y1), (x2, y2) = ([float(n) for n in point.split(",")] for point in found[1].split())
    assert y0 > y2 > y1
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.1)
    axis = charts.Axis([1.0, 1000.0], 0, 90, log=True)
    assert axis.place(10.0) - axis.place(1.0) == pytest.approx(axis.place(100.0) - axis.place(10.0))
    assert [text for _, text in charts.Axis([14.21, 14.26], 0, 9).labels()] == ["14.220", "14.240", "14.260"]
    ends = [charts.Mark(f"gan+cycle · max_epochs {n} of many", "c0", n, None, [n]) for n in (3, 9)]
    names = re.findall(r"<text class='name' x='([\d.]+)'[^>]*>([^<]*)", charts.end_chart("x", ends, [], None))
    assert names[0][1] != names[1][1], "what is left out is not what tells them apart"
    assert all(len(name) * charts.LETTER <= float(x) for x, name in names), "within the card"
    assert charts.line_chart("x", [charts.Line("a", "c0", [])]) == ""
    assert charts.end_chart("x", [], [], None) == charts.scatter_chart("x", []) == ""
    assert len(charts.thin([(float(x), 0.0) for x in range(5000)])) <= charts.MAX_POINTS


def test_means_are_over_what_all_seeds_have_reached(make_run: MakeRun, tmp_path: Path) -> None:
    """Also where one of them has so many points that they are thinned out."""
    from i2i_lightning.sweeps.page import _mean_curve

    long, short = ([(float(x), float(x)) for x in range(count)] for count in (1000, 150))
    mean = _mean_curve([long, short])
    assert mean[-1] == (149.0, 149.0)
    assert charts.thin(mean)[-1] == (149.0, 149.0)


def test_the_command_needs_no_torch(ablation: Path, tmp_path: Path, checkout: Path) -> None:
    code = (
        "import sys; from i2i_lightning.commands.sweep_report import main; main();"
        "assert not {'torch', 'lightning', 'hydra'} & set(sys.modules), set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(ablation), "--output", str(tmp_path / "there"), "--by", "sharpness"],
        capture_output=True,
        text=True,
        cwd=checkout,
    )
    assert done.returncode == 0, done.stderr
    assert "4 variants, 8 runs: 6 finished, 1 running, 1 failed. Best first by sharpness → 1." in done.stdout
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == [
        "report.csv",
        "report.html",
        "report.md",
        "runs.csv",
    ]
    assert not list(ablation.glob("report*"))


def test_the_command_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"i2i-sweep-report: .*: no runs in it"):
        sweep_report.main([str(tmp_path)])
