from types import SimpleNamespace

from rich.console import Console

from vfmbench.reporting.tables import folder_table
from vfmbench.results.schema import MetricRow


def test_a_warning_is_seen_although_settings_are_cut(capsys, spec_of):
    def row(name, value, settings=""):
        return MetricRow(name=name, metric=name, value=value, n=4, settings=settings, spec=spec_of(name))

    settings = f"{'a long account of what was done, ' * 9}and more; WARNING: n = 4 images for d = 8 features"
    rows = [row("fid@dino", 3.0, settings), row("network_vjps", 0.0), row("decoder_vjps", 0.0), row("encoder_vjps", 2.0)]
    scores = SimpleNamespace(samples="a", reference="b", num_images=4, num_samples=2, rows=rows)
    Console(width=1000).print(folder_table(scores))
    printed = capsys.readouterr().out
    assert "│ WARNING: n = 4 images for d = 8 features; a long account" in printed
    assert "…" in printed
    assert max(map(len, printed.splitlines())) < 200
    # Evaluations that nobody made are left out, but for those of the network itself.
    assert "network_vjps" in printed
    assert "encoder_vjps" in printed
    assert "decoder_vjps" not in printed
