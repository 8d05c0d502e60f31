"""The evaluation, `bintally predict` and `bintally serve` give the same predictions for the same photographs."""

import httpx
import numpy as np

from bintally.bins.shards import ShardReader, read_index
from bintally.files import read_csv
from project import Project
from server_process import JPEG, running_server

COUNTS = [1, 2, 3, 4, 5]


def test_logits_are_the_same_wherever_a_photograph_goes(project: Project) -> None:
    evaluated = {row["id"]: row for row in read_csv(project.folder / "data/predictions.csv")}
    (project.folder / "test.txt").write_text("\n".join(evaluated))
    project.must("bintally", "predict", "--ids", "test.txt", "--to", "exports/test.csv")
    predicted = {row["id"]: row for row in read_csv(project.folder / "exports/test.csv")}
    assert list(predicted) == list(evaluated)

    bins = project.folder / "data/bins"
    reader, entries = ShardReader(bins), {entry.id: entry for entry in read_index(bins)}
    with running_server(project.folder) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        served = {
            one: client.post("/invocations", content=reader.image(entries[one]), headers=JPEG).json()
            for one in evaluated
        }

    logits = [
        np.log([[float(row[f"p{count}"]) for count in COUNTS] for row in rows.values()])
        for rows in (evaluated, predicted)
    ] + [np.log([answer["probabilities"] for answer in served.values()])]
    assert logits[0].std() > 0.1
    for other in logits[1:]:
        np.testing.assert_allclose(other, logits[0], rtol=1e-5, atol=1e-5)
    for one, row in evaluated.items():
        answers = (row["most_probable"], row["low"], row["high"])
        assert answers == tuple(predicted[one][name] for name in ("most_probable", "low", "high"))
        assert [int(text) for text in answers] == [served[one]["most_probable"], *served[one]["set"]]
