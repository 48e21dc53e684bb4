"""`tracekit report rank`: keys, words and refusals."""

from tests.reports.test_rank import write


def test_report_rank(run, tmp_path):
    sweep, evaluation = write(tmp_path, (0.1, 0.2, 0.3, 0.4), (19, 15, 10, 2))
    ran = run("report", "rank", sweep, evaluation, "--resamples", 50, "--json")
    assert (ran.status, ran.err) == (0, "")
    assert ran.data.keys() >= {"tau_b", "interval", "by", "tasks", "seeds", "configurations", "by_task", "open_loop"}
    text = run("report", "rank", sweep, evaluation, "--resamples", 50)
    for word in ("Kendall", "closed n0", "1.00", "20 paired seeds"):
        assert word in text.out
    refused = run("report", "rank", sweep, tmp_path / "nowhere.json")
    assert (refused.status, refused.out, refused.err.count("\n")) == (2, "", 1)
