"""Every command in the pages is run by a test, or stands here with the reason why none runs it."""

import argparse
import io
import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
from pages import PAGES, ROOT, commands, words_in_backticks

from bintally.bins.record import parse_record
from bintally.cli import COMMANDS, parser_for
from bintally.params import Params, validate_params
from project import Project, make_project

# The test that runs a command, perhaps with other values, and what its file holds where it does.
PIPELINE, SEARCH, MACHINES = "tests/e2e/test_pipeline.py", "tests/e2e/test_search.py", "tests/e2e/test_machines.py"
AUDIT, PREDICT, SERVER = (
    "tests/apps/test_audit_command.py",
    "tests/apps/test_predict.py",
    "tests/serving/test_server.py",
)
TABLE = "tests/e2e/test_table.py"
SCRIPTS = "tests/docs/test_scripts.py"
EXP_RUN, QUEUE = '"exp", "run"', "tests/e2e/test_watching.py"
RUN_BY = {
    "make setup": (".ci/run", "make setup"),
    "make repro": (".ci/run", "make repro"),
    "make test": (".ci/run", "make test"),
    "make lint": (".ci/run", "make lint"),
    "dvc repro": (PIPELINE, '"dvc", "repro"'),
    "dvc push": (PIPELINE, '"dvc", "push"'),
    "dvc push --run-cache": (PIPELINE, '"dvc", "push", "--run-cache"'),
    "dvc metrics diff": (PIPELINE, '"metrics", "diff"'),
    "dvc plots show": (PIPELINE, '"plots", "show"'),
    "dvc exp show": (PIPELINE, '"exp", "show"'),
    "dvc exp apply NAME": (SEARCH, "dvc exp apply"),
    "dvc exp run -S train.lr=0.0037": (PIPELINE, EXP_RUN),
    "dvc exp run -n wide -S train.hidden=1024": (PIPELINE, EXP_RUN),
    "dvc exp run -n initial -S train.lr=0.01 -S train.batch_size=64": (PIPELINE, EXP_RUN),
    "dvc exp run -n final -S train.lr=0.0037 -S train.batch_size=32": (PIPELINE, EXP_RUN),
    "dvc exp run -S 'split.exclude=[blurred,dark]'": (PIPELINE, "split__exclude="),
    "dvc exp run -S split.exclude_wrong=0.02": (PIPELINE, "split__exclude_wrong="),
    "dvc exp run -S 'fetch.counts=[1,2,3]'": (PIPELINE, "train__counts="),
    "dvc exp run -S 'fetch.counts=[0,1,2,3,4,5,6]' -S fetch.open_ended=true": (PIPELINE, EXP_RUN),
    "dvc exp run -S model.trainable=all -S model.image_size=128 -S train.optimizer=adamw -S train.lr=0.001 "
    "-S train.schedule=one_cycle -S train.warmup=0.3 -S train.weight_decay=0.05 -S train.label_smoothing=0.1 "
    "-S train.clip_grad_norm=1 -S train.ema_decay=0.99 -S train.batch_size=32 -S train.epochs=8 -S launch.ranks=1": (
        PIPELINE,
        "model__trainable=",
    ),
    "dvc exp run -S launch.ranks=4 -S model.trainable=all -S train.lr=0.0003": ("tests/e2e/test_training.py", "ranks"),
    "dvc exp run -S launch.nnodes=2 -S launch.rdzv_endpoint=10.0.0.1:29500 -S launch.ranks=8": (MACHINES, "nnodes"),
    "dvc exp run --queue -S train.lr=0.002,0.004,0.008 -S launch.ranks=1": (QUEUE, '"--queue"'),
    "dvc queue start --jobs 2": (QUEUE, '"queue", "start"'),
    "dvc queue status": (QUEUE, '"queue", "status"'),
    "make store PUBLIC=aft-vbi-pds": ("tests/conftest.py", "store"),
    "dvc exp run -S fetch.source=s3://aft-vbi-pds -S fetch.endpoint=http://127.0.0.1:8333 "
    "-S fetch.ids=../shared/abid/file_list.json -S fetch.per_count=null -S train.lr=0.0037 -S train.batch_size=32": (
        PIPELINE,
        "fetch__endpoint=",
    ),
    "dvc repro --force --single-item fetch": (PIPELINE, '"dvc", "repro", "--force"'),
    "BINTALLY_TENSORBOARD=$PWD/.bintally/board dvc exp run -S train.lr=0.0037": (
        "tests/test_monitor.py",
        "BINTALLY_TENSORBOARD",
    ),
    "bintally tune --trials 20": (SEARCH, '"bintally", "tune"'),
    "bintally tune --storage postgresql+psycopg://USER:PASSWORD@HOST/DATABASE": (SEARCH, "--storage"),
    "bintally diagnose": ("tests/e2e/test_diagnose.py", '"bintally", "diagnose"'),
    "bintally report": ("tests/apps/test_report.py", '"report"'),
    "bintally report --since exports/counts.csv": ("tests/apps/test_report.py", '"--since"'),
    "prometheus --config.file=deploy/prometheus.yaml --web.listen-address=127.0.0.1:9090": (
        "tests/deploy/test_alerts.py",
        "--config.file=",
    ),
    "bintally export": ("tests/apps/test_export_command.py", '"export"'),
    "bintally audit --budget 50": (AUDIT, '"--budget"'),
    "bintally audit --budget 50 --error-rate 0.03": (AUDIT, '"--error-rate"'),
    "bintally audit s3://BUCKET/PREFIX --to exports/other": (AUDIT, '"audit"'),
    "bintally audit --accept marks.csv": (AUDIT, '"--accept"'),
    "bintally predict FOLDER --to exports/counts.csv": (PREDICT, '"predict"'),
    "bintally predict s3://BUCKET/PREFIX --to exports/counts.parquet": (PREDICT, "parquet"),
    "bintally predict s3://BUCKET/PREFIX --to exports/counts --part 3/16": (PREDICT, '"--part"'),
    "bintally predict s3://BUCKET/PREFIX --records --to exports/judged.csv": (PREDICT, '"--records"'),
    "bintally serve": (SERVER, '"serve"'),
    "bintally serve --rev v1.2": ("tests/apps/test_serve_command.py", "--rev"),
    "bintally serve --host 0.0.0.0 --token-file FILE": (SERVER, "--token-file"),
    "curl --data-binary @bin.jpg -H 'content-type: image/jpeg' 'http://127.0.0.1:8080/invocations?expected=3'": (
        "tests/serving/test_endpoint.py",
        "/invocations",
    ),
    "curl -F images=@bin.jpg -F records=@bin.json http://127.0.0.1:8080/invocations": (
        "tests/serving/test_endpoint.py",
        '("records", ("bin.json"',
    ),
    "python docs/example_stock.py exports/stock": (SCRIPTS, "docs/example_stock.py"),
    "bintally use exports/stock/columns.yaml": (SCRIPTS, "columns.yaml"),
    "bintally audit exports/stock/Bestand.csv --budget 10": (SCRIPTS, "Bestand.csv"),
    "bintally audit exports/stock/Bestand.csv --budget 10 --by value --tolerance 1": (SCRIPTS, '"--by", "value"'),
    "dvc exp run -S fetch.source=exports/stock/Bestand.csv -S fetch.per_count=null": (TABLE, "Bestand"),
    "dvc exp run -S fetch.source=exports/stock/Bestand.csv -S fetch.per_count=null -S 'fetch.counts=[1,2,3,4,5]' "
    "-S fetch.open_ended=false": (TABLE, "fetch.open_ended"),
    "python docs/judge_bin.py 02133": (SCRIPTS, "docs/judge_bin.py"),
    "python docs/recount_demo.py 50": (SCRIPTS, "docs/recount_demo.py"),
    "python docs/generate.py": ("tests/docs/test_generated.py", "docs/generate.py"),
    "jupyter lab notebooks/explore.ipynb": ("tests/e2e/test_notebook.py", "explore.ipynb"),
}
# Run below, in a copy of the repository.
RUN_HERE = (
    "bintally use settings/real.yaml",
    "dvc dag --md",
    "dvc metrics show metrics/audit.json",
    "dvc remote add -d team s3://YOUR-BUCKET/bintally",
    "dvc remote modify team endpointurl URL",
    "dvc exp run -S fetch.source=../mybins -S fetch.per_count=null",
    "dvc exp rename TRIAL searched",
    "dvc metrics diff initial final",
    "dvc plots diff initial searched final",
)
AWS = "needs an account with AWS"
BENCHMARK = "takes minutes; run by hand for the figures of docs/benchmarks.md"
FIREWALL = "changes the firewall of the machine"
NOT_RUN = {
    ". .venv/bin/activate": "sets up a shell",
    "make test-all": "runs this test",
    "make bench": BENCHMARK,
    "pytest tests/scoring/test_metrics.py": "part of `make test`",
    "pip install jupyterlab": "downloads packages that are not in the lock",
    "tensorboard --logdir .bintally/board": "runs until stopped; tests/test_monitor.py reads the files it shows",
    "dvc exp run -S model.backbone=resnet50": "downloads weights",
    "dvc exp run -S fetch.per_count=2000": "reads the public bucket",
    "dvc exp run -S fetch.source=s3://aft-vbi-pds -S fetch.per_count=2000 -S train.lr=0.0037 -S train.batch_size=32": (
        "reads the public bucket"
    ),
    "python ../shared/abid/load_bucket.py --endpoint http://127.0.0.1:8333 "
    '--key "$(dvc config remote.store.access_key_id)" --secret "$(dvc config remote.store.secret_access_key)"': (
        "needs a folder of real bins that is not in the repository"
    ),
    "python benchmarks/serve.py --model models --images FOLDER": BENCHMARK,
    "python benchmarks/soak.py --model models": BENCHMARK,
    "python benchmarks/predict.py --model models --images FOLDER --price 0.10": BENCHMARK,
    "python benchmarks/scale.py --image-size 32 --epochs 3": BENCHMARK,
    "python benchmarks/scale.py --bins 10000 --image-size 32 --epochs 3 --interrupt": BENCHMARK,
    "python benchmarks/scale.py --bins 100000 --image-size 32 --epochs 3 --interrupt": BENCHMARK,
    "python benchmarks/scale.py --bins 535234 --image-size 32 --epochs 3 --interrupt": BENCHMARK,
    "python benchmarks/train.py": BENCHMARK,
    "python benchmarks/train.py --only stages --image-size 192": BENCHMARK,
    "python benchmarks/train.py --only full --backbone resnet50 --image-size 224 --batch-size 256 --bins 6144 "
    "--rounds 1 --epochs 3 --workers 16": "needs a GPU",
    "sudo ufw default deny incoming && sudo ufw allow OpenSSH": FIREWALL,
    "sudo ufw allow proto tcp from 10.0.0.0/24": FIREWALL,
    "sudo ufw enable": FIREWALL,
    "kubectl port-forward service/bintally-serve 8080:80": "needs a Kubernetes cluster",
    "curl --fail --data-binary @bin.jpg --header 'Content-Type: image/jpeg' "
    '--header "Authorization: Bearer $TOKEN" http://127.0.0.1:8080/invocations': "needs a Kubernetes cluster",
    "tar --create --gzip --dereference --file model.tar.gz --directory models "
    "model.safetensors card.json calibration.json records.json": "for the upload to AWS that follows",
    "aws s3 cp model.tar.gz s3://BUCKET/bintally/REV/model.tar.gz": AWS,
    "aws sagemaker create-model --model-name bintally-REV --execution-role-arn arn:aws:iam::ACCOUNT:role/ROLE "
    "--primary-container Image=ACCOUNT.dkr.ecr.REGION.amazonaws.com/bintally-serve:REV,"
    "ModelDataUrl=s3://BUCKET/bintally/REV/model.tar.gz": AWS,
    "aws sagemaker create-endpoint-config --endpoint-config-name bintally-REV --production-variants "
    "VariantName=all,ModelName=bintally-REV,InstanceType=ml.c6i.large,InitialInstanceCount=1,"
    "ContainerStartupHealthCheckTimeoutInSeconds=300": AWS,
    "aws sagemaker create-endpoint --endpoint-name bintally --endpoint-config-name bintally-REV": AWS,
    "aws sagemaker wait endpoint-in-service --endpoint-name bintally": AWS,
    "aws sagemaker-runtime invoke-endpoint --endpoint-name bintally --content-type image/jpeg "
    "--body fileb://bin.jpg /dev/stdout": AWS,
}
HISTORY = ("CHANGELOG.md", "results.md")  # pages that name what is gone


def every_command() -> Iterator[str]:
    for page in PAGES:
        yield from commands(page)


def test_every_command_is_run_by_a_test_or_has_a_reason() -> None:
    known = {*RUN_BY, *RUN_HERE, *NOT_RUN}
    assert not [command for command in every_command() if command not in known]


def test_no_command_is_listed_that_no_page_has() -> None:
    in_pages = {*every_command(), "dvc dag --md"}
    assert not {*RUN_BY, *RUN_HERE, *NOT_RUN} - in_pages


@pytest.mark.parametrize(("file", "needle"), sorted(set(RUN_BY.values())))
def test_the_named_test_runs_the_command(file: str, needle: str) -> None:
    assert needle in (ROOT / file).read_text(encoding="utf-8")


# --- names and values in the pages ------------------------------------------------------------------------


def bintally_commands() -> Iterator[list[str]]:
    """The words after `bintally` of every such command, in blocks and within sentences."""
    for page in PAGES:
        if page.name not in HISTORY:
            for line in [*commands(page), *words_in_backticks(page)]:
                if line.startswith("bintally "):
                    yield shlex.split(line)[1:]


@pytest.mark.parametrize("name", sorted({words[0] for words in bintally_commands() if not words[0].startswith("-")}))
def test_commands_and_options_of_bintally_exist(name: str) -> None:
    if name == "COMMAND":
        return
    assert name in COMMANDS
    options = _options(name)
    for words in bintally_commands():
        if words[0] == name:
            assert {word for word in words if word.startswith("--")} <= options, words


def _options(name: str) -> set[str]:
    parser = parser_for(name)
    subparsers = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return {option for action in subparsers.choices[name]._actions for option in action.option_strings}


def test_every_override_in_a_page_is_a_parameter_with_an_allowed_value() -> None:
    content = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for page in PAGES:
        for command in commands(page):
            words = shlex.split(command)
            changed = json.loads(json.dumps(content))
            for value in (after for word, after in pairwise(words) if word == "-S"):
                key, text = value.split("=", 1)
                section, name = key.split(".")
                assert name in changed[section], f"{page.name}: {key}"
                changed[section][name] = yaml.safe_load(text if text.startswith("[") else text.split(",")[0])
            validate_params(changed, f"{page.name}: {command}")


def test_every_parameter_that_a_page_names_exists() -> None:
    sections = {name: field.annotation for name, field in Params.model_fields.items()}
    for page in PAGES:
        if page.name in HISTORY:
            continue
        for words in words_in_backticks(page):
            found = re.match(r"(?:dvc exp run )?(?:-S )?([a-z]+)\.([a-z_]+)(?:[:=]|$)", words)
            if found and found[1] in sections and found[2] not in ("py", "yaml", "md", "csv", "json", "png"):
                assert found[2] in sections[found[1]].model_fields, f"{page.name}: {words}"  # type: ignore[union-attr]


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if "://" in target:
                continue
            name, _, anchor = target.partition("#")
            linked = (page.parent / name).resolve() if name else page
            assert linked.exists(), f"{page.name} links {target}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
                anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
                assert anchor in anchors, f"{page.name} links {target}"


def test_files_that_pages_name_exist() -> None:
    for page in PAGES:
        if page.name in HISTORY:
            continue
        for words in words_in_backticks(page):
            if re.fullmatch(r"(src|tests|benchmarks|docs|settings|notebooks|deploy)/[\w./-]*|[a-z]+/\w+\.py", words):
                places = (ROOT / words, ROOT / "src/bintally" / words)
                assert any(place.exists() for place in places), f"{page.name}: {words}"


def test_the_readme_fits_on_a_page() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


# --- commands that are run here ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A copy of the repository, with a folder `mybins` beside it as docs/real-data.md describes."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "repository").mkdir()
    project = make_project(folder / "repository")
    (project.folder / "metrics").mkdir()
    shutil.copy(ROOT / "metrics/audit.json", project.folder / "metrics")
    project.commit("Metrics")
    bins = folder / "mybins"
    for name in ("metadata", "bin-images"):
        (bins / name).mkdir(parents=True)
    photograph = io.BytesIO()
    Image.new("RGB", (160, 120)).save(photograph, "JPEG")
    for number in range(1, 6):  # a bin of each count
        record = json.loads(record_in_the_page())
        record["BIN_FCSKU_DATA"] = {"B00001": {"quantity": number}}
        record["EXPECTED_QUANTITY"] = number
        (bins / f"metadata/{number}.json").write_text(json.dumps(record))
        (bins / f"bin-images/{number}.jpg").write_bytes(photograph.getvalue())
    return project


def record_in_the_page() -> str:
    found = re.search(r"```json\n(.*?)```", (ROOT / "docs/real-data.md").read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return found[1]


def test_the_graph_in_the_readme_is_the_graph(project: Project) -> None:
    assert project.must("dvc", "dag", "--md").strip() in (ROOT / "README.md").read_text(encoding="utf-8")


def test_a_preset_is_put_into_the_parameters(project: Project) -> None:
    assert "model.trainable" in project.must("bintally", "use", "settings/real.yaml")
    project.must("git", "checkout", "params.yaml")


def test_metrics_of_the_audit_are_shown(project: Project) -> None:
    assert "photograph_and_list.auc" in project.must("dvc", "metrics", "show", "metrics/audit.json")


def test_a_remote_of_ones_own_is_added(project: Project) -> None:
    project.must("dvc", "remote", "add", "-d", "team", "s3://YOUR-BUCKET/bintally")
    project.must("dvc", "remote", "modify", "team", "endpointurl", "http://127.0.0.1:1")
    assert "s3://YOUR-BUCKET/bintally" in project.must("dvc", "remote", "list")
    project.must("git", "checkout", ".dvc/config")


def test_a_folder_of_ones_own_bins_is_fetched_and_experiments_are_renamed_and_compared(project: Project) -> None:
    assert parse_record(record_in_the_page().encode()).count == 3
    # The stage fetch alone: the bins are too few to be split.
    project.must(
        *("dvc", "exp", "run", "-n", "trial", "-S", "fetch.source=../mybins", "-S", "fetch.per_count=null", "fetch")
    )
    index = (project.folder / "data/bins/index.csv").read_text().splitlines()
    assert len(index) == 1 + 5
    project.must("dvc", "exp", "rename", "trial", "searched")
    project.must("dvc", "metrics", "diff", "HEAD", "searched")
    project.must("dvc", "plots", "diff", "HEAD", "searched")
