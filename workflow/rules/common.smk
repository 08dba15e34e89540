
# The configuration, the selected papers, and small helpers of the rules.
import json
import os
import shlex
import sys
import time
from pathlib import Path

from snakemake.exceptions import WorkflowError

# the package is the one beside this Snakefile, installed or not
SOURCE = str(Path(workflow.basedir, "src"))
sys.path.insert(0, SOURCE)
os.environ["PYTHONPATH"] = os.pathsep.join([SOURCE, *filter(None, [os.environ.get("PYTHONPATH")])])

from atlas import data, forkserver, lock
from atlas.config import parse
from atlas.errors import AtlasError
from atlas.paper import FAMILIES, check_targets, select
from atlas.sources import closure, digest, modules

# the rules call the Python that runs snakemake, also when its environment is not activated
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

try:
    CONFIG = parse(config)
    PAPERS = {paper.slug: paper for paper in select(CONFIG.select)}
    SETTINGS = {slug: p.setting(CONFIG.tier, CONFIG.settings.get(slug)) for slug, p in PAPERS.items()}
    DATA = data.tracked(Path(workflow.basedir))
    check_targets(workflow.dag_settings.targets, PAPERS)
except AtlasError as error:
    raise WorkflowError(str(error)) from None

OUT = CONFIG.out
ATLAS = f"python -IS {shlex.quote(str(Path(SOURCE, 'atlas', 'launch.py')))}"
JUDGE = digest(modules("verify", "claims", "figures"))


def sources(wildcards):
    return [os.path.relpath(path) for path in closure(PAPERS[wildcards.paper].experiment)]


def datasets(wildcards):
    return [DATA[name].path for name in PAPERS[wildcards.paper].data]


def resource(name, grow=False):
    def value(wildcards, attempt):
        wanted = getattr(getattr(PAPERS[wildcards.paper].resources, CONFIG.tier), name)
        return wanted * attempt if grow else wanted

    return value


run_state = {}


def begin():
    """Before the first job: one workflow at a time, and a warm Python for the jobs."""
    try:
        run_state["lock"] = lock.acquire(Path(CONFIG.results))
    except AtlasError as error:
        sys.exit(f"atlas: {error}")
    run_state["start"] = time.time()
    run_state["server"] = forkserver.start()


def end():
    """After the last job, also when some failed: the table of the new verdicts (ATLAS_SUMMARY=all: of all, 0: none)."""
    summary = os.environ.get("ATLAS_SUMMARY", "new")
    if summary != "0":
        newer = f"--newer {run_state['start']:.0f}" if summary == "new" else ""
        shell(f"{ATLAS} verdicts {newer} --out {shlex.quote(str(OUT))} {' '.join(PAPERS)} || true")
    forkserver.stop(run_state["server"])
