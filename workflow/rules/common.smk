# The configuration, the selected papers, and small helpers of the rules.
import json
import os
import shlex
import sys
import time
from pathlib import Path

from snakemake.exceptions import WorkflowError

# the package is the one beside this Snakefile, installed or not
sys.path.insert(0, str(Path(workflow.basedir, "src")))

import atlas.config
import atlas.data
import atlas.paper
from atlas import forkserver, lock, sources
from atlas.errors import AtlasError
from atlas.paper import FAMILIES

forkserver.prepare_environment(Path(workflow.basedir))

try:
    CONFIG = atlas.config.parse(config)
    PAPERS = {paper.slug: paper for paper in atlas.paper.select(CONFIG.select)}
    SETTINGS = {
        slug: p.setting(CONFIG.tier, CONFIG.settings.get(slug))
        for slug, p in PAPERS.items()
    }
    DATA = atlas.data.tracked(Path(workflow.basedir))
except AtlasError as error:
    raise WorkflowError(str(error)) from None

OUT = CONFIG.out
JUDGE = sources.digest(sources.modules("verify", "claims", "figures"))


def experiment_sources(wildcards):
    return [
        os.path.relpath(path)
        for path in sources.closure(PAPERS[wildcards.paper].experiment)
    ]


def datasets(wildcards):
    return [DATA[name].path for name in PAPERS[wildcards.paper].data]


def resource(name, grow=False):
    def value(wildcards, attempt):
        wanted = getattr(getattr(PAPERS[wildcards.paper].resources, CONFIG.tier), name)
        return wanted * attempt if grow else wanted

    return value


def no_such_target(wildcards):
    try:
        atlas.paper.check_target(wildcards.target, PAPERS)
    except AtlasError as error:
        sys.exit(f"atlas: {error}")


def folder_of_output(wildcards, output):
    return os.path.dirname(output[0])


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
        shell(
            f"atlas-job verdicts {newer} --out {shlex.quote(str(OUT))} {' '.join(PAPERS)} || true"
        )
    forkserver.stop(run_state["server"])
