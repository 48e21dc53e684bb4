"""`tracekit bench pruners`."""


def test_figures_as_json_and_as_a_table(run):
    ran = run("bench", "pruners", "--pruner", "none", "--pruner", "naive", "--rounds", "1", "--json")
    assert ran.status == 0
    assert list(ran.data["pruners"]) == ["none", "naive"]
    assert {"single_ms", "batched_us", "reduction_ms"} <= set(ran.data["pruners"]["naive"])
    shown = run("bench", "pruners", "--pruner", "naive", "--rounds", "1")
    assert shown.status == 0
    assert "naive" in shown.out
    assert "published, on an A100" in shown.out


def test_what_cannot_be_measured_is_one_line(run):
    for arguments, words in ((("--pruner", "naiv"), "there are: none, naive"), (("--rounds", "0"), "at least 1")):
        ran = run("bench", "pruners", *arguments)
        assert ran.status == 2
        assert words in ran.err
        assert ran.err.count("\n") == 1
