# What is made of all verdicts together.
VERDICTS = [f"{OUT}/{slug}/verdicts.json" for slug in PAPERS]


rule track:
    """Bring MLflow up to date with the results; a paper that has not changed is not logged again."""
    message:
        "logging to MLflow"
    input:
        VERDICTS,
    output:
        f"{OUT}/track.json",
    log:
        f"{OUT}/track.log",
    benchmark:
        f"{OUT}/track.tsv"
    conda:
        "../../environment.yml"
    params:
        papers=" ".join(PAPERS),
        out=OUT,
    shell:
        "{ATLAS} track {params.out:q} {params.papers} > {log} 2>&1"


rule atlas:
    """All verdicts as one table, and the overview figures."""
    message:
        "drawing the overview"
    input:
        VERDICTS,
    output:
        table=f"{OUT}/verdicts.csv",
        figures=report(
            expand(f"{OUT}/overview/{{name}}.svg", name=["exponents", "speedups", "verdicts"]), category="Overview"
        ),
    log:
        f"{OUT}/atlas.log",
    benchmark:
        f"{OUT}/atlas.tsv"
    conda:
        "../../environment.yml"
    params:
        papers=" ".join(PAPERS),
        code=JUDGE,
        out=OUT,
    shell:
        "{ATLAS} overview {params.out:q} {params.papers} > {log} 2>&1"


localrules:
    track,
    atlas,
