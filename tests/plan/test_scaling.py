"""Where a curve of GPUs breaks, on curves made by hand."""

from __future__ import annotations

from rigsize.plan.scaling import ScalingPoint, breaks_in_words


def curve(*rows: tuple[int, float]) -> list[ScalingPoint]:
    """Points of (GPUs, hours)."""
    (first_gpus, first_hours), *_ = rows
    return [
        ScalingPoint(
            machine="made box: 1 L4",
            nodes=gpus,
            gpus=gpus,
            network_known=False,
            how="lean",
            batch="1 x 1",
            hours=hours,
            usd=hours * gpus,
            efficiency=first_gpus * first_hours / (gpus * hours),
            steps_hours=hours / 2,
            lost_to="the network" if gpus > first_gpus else "",
            bound_by="compute",
        )
        for gpus, hours in rows
    ]


def test_it_holds() -> None:
    # 8 / (2 x 4.2) = 95 % and 8 / (4 x 2.3) = 87 % of each GPU.
    said = breaks_in_words(curve((1, 8.0), (2, 4.2), (4, 2.3)), 256)
    assert said == "it holds up to 4 GPUs, the most that were searched"
    assert breaks_in_words(curve((1, 8.0)), 256).startswith("it holds up to 1 GPU, ")


def test_less_than_half_and_hardly_faster() -> None:
    # 8 / (4 x 4.1) = 49 %; 4.1 is more than 95 % of 4.2.
    said = breaks_in_words(curve((1, 8.0), (2, 4.2), (4, 4.1)), 256)
    assert said == (
        "from 4 GPUs on less than half of each is used, most of the rest lost to the network;"
        " 4 GPUs are hardly faster than 2"
    )


def test_a_global_batch_gives_no_more_gpus_a_text() -> None:
    rows = curve((1, 8.0), (2, 4.0), (4, 2.0))
    assert breaks_in_words(rows, 7).endswith("a global batch of 7 gives no more GPUs a text each")
    assert "global batch" not in breaks_in_words(rows, 8)
    assert "global batch" not in breaks_in_words(rows, None)
