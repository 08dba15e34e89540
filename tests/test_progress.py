"""What a run shows on the screen."""

import logging
import re
from pathlib import Path
from typing import Any

import pytest

from atlas import files
from atlas.progress import Estimate, attach, duration, is_news
from tests.examples import claim, origin, paper, result


def test_the_time_left() -> None:
    estimate = Estimate({"a": 10.0, "b": 30.0, "c": None}, start=0.0)
    assert estimate.left(0.0) is None  # nothing has run, the number of cores is not known
    estimate.started = {"a": 0.0, "b": 0.0}
    # c is taken for as long as the others on average, 20 s; in 5 s 10 s of work were done, 50 s are left
    assert estimate.left(5.0) == pytest.approx(25.0)
    estimate.started = {"b": 0.0, "c": 10.0}
    estimate.done = {"a"}
    assert estimate.left(20.0) == pytest.approx((10 + 10) * 20 / (10 + 20 + 10))
    # one after the other at the end: not less than the longest that is left
    estimate.done, estimate.started = {"a", "c"}, {"b": 19.0}
    assert estimate.left(20.0) == pytest.approx(29.0)
    estimate.done = {"a", "b", "c"}
    assert estimate.left(40.0) == 0.0
    assert Estimate({"a": None}, start=0.0).left(10.0) is None


def test_durations() -> None:
    assert [duration(s) for s in (4.4, 89, 90, 600, 5400)] == ["4 s", "89 s", "2 min", "10 min", "1.5 h"]


def record(message: str, level: int = logging.INFO, **extra: Any) -> logging.LogRecord:
    return logging.makeLogRecord({"msg": message, "levelno": level, "levelname": "INFO", **extra})


def test_chatter_is_left_out() -> None:
    assert is_news(record("Nothing to be done (all requested files are present and up to date)."))
    assert is_news(record("Terminating processes on user request, this might take some time."))
    assert is_news(record("Select jobs to execute...", logging.WARNING))
    assert not is_news(record("Select jobs to execute..."))
    assert not is_news(record("Execute 2 jobs...", event="job_started"))


def test_a_line_per_paper(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.Logger("snakemake-like")
    screen = attach(logger, tmp_path, {"good": 2.0, "bad": None})

    def say(event: str, **extra: Any) -> None:
        logger.handle(record("", event=event, **extra))

    for number, (rule, slug) in enumerate([("measure", "good"), ("measure", "bad"), ("verify", "good")]):
        say("job_info", jobid=number, rule_name=rule, rule_msg="", wildcards={"paper": slug})
    found = paper(
        *(claim("rate", result("rate"), v) for v in ("verified", "refuted")),
        paper="good",
        provenance=origin("good"),
    )  # type: ignore[arg-type]
    files.write_text(tmp_path / "good/verdicts.json", found.model_dump_json())
    files.write_text(tmp_path / "bad/measure.log", "first\nRuntimeError: no luck\n")
    say("job_finished", job_id=0)
    say("job_error", jobid=1, rule_name="measure")
    say("job_finished", job_id=2)
    say("job_info", jobid=9, rule_name="track", rule_msg="logging to MLflow", wildcards={})
    say("job_finished", job_id=9)
    screen.stop()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert re.match(r"\[0/2.*\] ✗ bad  RuntimeError: no luck   \(.*bad/measure.log\)$", lines[0])
    assert re.match(r"\[1/2.*\] good ✓✗  2 s$", lines[1])


def test_what_cannot_be_shown_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.Logger("snakemake-like")
    screen = attach(logger, tmp_path, {"good": 2.0})
    info = {"jobid": 0, "rule_name": "verify", "rule_msg": "", "wildcards": {"paper": "good"}}
    logger.handle(record("", event="job_info", **info))
    logger.handle(record("", event="job_finished", job_id=0))  # there is no verdicts.json
    screen.stop()
    assert "FileNotFoundError" in capsys.readouterr().err
